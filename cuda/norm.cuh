// What the kernels of group norm share.
#pragma once
#include "common.cuh"
#include "hopper.cuh"

template <typename T> constexpr int VEC = 16 / sizeof(T);
// 4096 channels at most, whatever the dtype.
template <typename T> constexpr int GROUP_NORM_THREADS = 4096 / VEC<T>;

// The groups of a thread's V adjacent channels, without a division for each.
template <int V> struct Groups {
    int of[V];

    __device__ __forceinline__ Groups(int column, int channels) {
        int group = column / channels, within = column - group * channels;
#pragma unroll
        for (int j = 0; j < V; j++) {
            of[j] = group;
            if (++within == channels) within = 0, group++;
        }
    }
};

// A thread's V adjacent channels: sums of x - shift and of its square.
template <typename T> struct ChannelSums {
    static constexpr int V = VEC<T>;
    float sum[V] = {}, square[V] = {};
    T shift[V];

    // `row` is the image's first row, `channels` those of a group.
    __device__ __forceinline__ ChannelSums(const T* row, const Groups<V>& groups, int channels) {
#pragma unroll
        for (int j = 0; j < V; j++) shift[j] = row[groups.of[j] * channels];
    }

    __device__ __forceinline__ void add(const Vector<T, V>& x) {
#pragma unroll
        for (int j = 0; j < V; j++) {
            float d = to_float(x.v[j]) - to_float(shift[j]);
            sum[j] += d;
            square[j] += d * d;
        }
    }

    // Leaves the sums at [lane, column] of the block's [lanes, width] arrays.
    __device__ __forceinline__ void leave(float* sums, float* squares, int at) const {
#pragma unroll
        for (int j = 0; j < V; j += 4) {
            *reinterpret_cast<float4*>(sums + at + j) = make_float4(sum[j], sum[j + 1], sum[j + 2], sum[j + 3]);
            *reinterpret_cast<float4*>(squares + at + j) =
                make_float4(square[j], square[j + 1], square[j + 2], square[j + 3]);
        }
    }
};

// Mean and 1/std from sums of n values of x - shift and of its square.
__device__ __forceinline__ float2 mean_rstd(float2 sums, float n, float shift, float eps) {
    float mean = sums.x / n;
    float variance = fmaxf(sums.y / n - mean * mean, 0.f);
    return make_float2(mean + shift, rsqrtf(variance + eps));
}

// y = x * scale + offset for a thread's V channels.
template <typename T> struct Affine {
    static constexpr int V = VEC<T>;
    float scale[V], offset[V];

    // Statistics of the groups from `first_group` on.
    __device__ __forceinline__ Affine(const Vector<T, V>& weight, const Vector<T, V>& bias, const float2* statistics,
                                      const Groups<V>& groups, int first_group) {
#pragma unroll
        for (int j = 0; j < V; j++) {
            float2 s = statistics[groups.of[j] - first_group];
            scale[j] = to_float(weight.v[j]) * s.y;
            offset[j] = to_float(bias.v[j]) - s.x * scale[j];
        }
    }

    // One branch for all: the exponentials and reciprocals of a vector do not wait for one another.
    __device__ __forceinline__ Vector<T, V> operator()(const Vector<T, V>& x, bool with_silu) const {
        float f[V];
#pragma unroll
        for (int j = 0; j < V; j++) f[j] = to_float(x.v[j]) * scale[j] + offset[j];
        if (with_silu) {
#pragma unroll
            for (int j = 0; j < V; j++) f[j] = silu(f[j]);
        }
        Vector<T, V> y;
#pragma unroll
        for (int j = 0; j < V; j++) y.v[j] = from_float<T>(f[j]);
        return y;
    }
};

// Waits for the blocks along z, which are a cluster if there are several.
__device__ __forceinline__ void sync_parts() {
#if __CUDA_ARCH__ >= 900
    if (gridDim.z > 1) return cluster_sync();
#endif
    __syncthreads();
}

// A block's shared memory must stay until the others have read it.
__device__ __forceinline__ void wait_for_parts() {
#if __CUDA_ARCH__ >= 900
    if (gridDim.z > 1) cluster_wait_for_readers();
#endif
}

// A warp adds up what the blocks along z have at `total`, in the order of their numbers.
__device__ __forceinline__ float2 sum_of_parts(const float2* total) {
#if __CUDA_ARCH__ >= 900
    if (gridDim.z > 1) {
        const int rank = threadIdx.x % 32;
        const float2 part = rank < gridDim.z ? load_cluster(total, rank) : make_float2(0.f, 0.f);
        return make_float2(warp_sum(part.x), warp_sum(part.y));
    }
#endif
    return *total;
}

// The sums of a block's `groups` groups from `first_group` on: of its warps, then of the block, at `totals`. A slab has
// V groups at most, and warp g writes the total of group g.
template <typename T>
__device__ __forceinline__ void sum_block(const ChannelSums<T>& mine, const Groups<VEC<T>>& group, int first_group,
                                          int groups, float2 (&of_warps)[VEC<T>][GROUP_NORM_THREADS<T> / 32],
                                          float2* totals) {
    constexpr int V = VEC<T>, WARPS = GROUP_NORM_THREADS<T> / 32;
    const int warp = threadIdx.x / 32;
    for (int g = 0; g < groups; g++) {
        float2 total = make_float2(0.f, 0.f);
#pragma unroll
        for (int j = 0; j < V; j++)
            if (group.of[j] == first_group + g) {
                total.x += mine.sum[j];
                total.y += mine.square[j];
            }
        total = make_float2(warp_sum(total.x), warp_sum(total.y));
        if (threadIdx.x % 32 == 0) of_warps[g][warp] = total;
    }
    __syncthreads();
    if (warp < groups) {
        const float2 total = threadIdx.x % 32 < WARPS ? of_warps[warp][threadIdx.x % 32] : make_float2(0.f, 0.f);
        const float2 sum = make_float2(warp_sum(total.x), warp_sum(total.y));
        if (threadIdx.x % 32 == 0) totals[warp] = sum;
    }
}
