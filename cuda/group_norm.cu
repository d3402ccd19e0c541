// GroupNorm (+ SiLU): y = (x - mean) * rstd * weight + bias, statistics over the pixels and adjacent channels of one group
// of one image; x is [b,hw,c], and out may be x. Which of these run is src/gpu/group_norm.rs's choice:
//   group_norm_fused:  grid (slabs of whole groups, b, parts of the rows). A block keeps its channels of its rows
//                      in registers, sums, folds the sums into groups, and writes the result. Where there are
//                      several parts (Hopper), they are a cluster, whose blocks read one another's sums.
//                      group_norm_fused_few is the same for parts with few rows.
//   group_norm_stats:  grid (splits, b). A block walks its rows with all channels, so every load is a full
//                      line, and writes partial[b,group,split].
//   group_norm_apply:  grid (blocks, b). Folds the partials in a fixed order, turns them into one scale
//                      and one offset per channel, kept in registers, and walks its rows from the last, which
//                      L2 still holds, to the first.
// In all of them a thread owns 16 bytes of channels, and the same bits come out of every run, of an image alone
// and among others.
// 1. Sums are of x - shift with shift = the group's first element: no cancellation when |mean| >> std.
// 2. A vector of channels may straddle groups (320/32 = 10): sums are per channel until the block's fold. A
//    slab has so many groups that it is made of whole vectors (4 of 10 channels).
// 3. What does not depend on the statistics is loaded before they are folded.
// SD 1.5: hw 64..4096, c 320..2560; the VAE: hw up to 262144, c 128..512.
//
// Test: cargo test --release --test kernels norm        Bench: cargo bench --bench kernels group_norm
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

// Vectors of x that a thread of group_norm_fused holds, mirrored in src/gpu/group_norm.rs. 32x32 maps of 640 channels
// need 11, 14 let 64x64 maps be in 3 parts; the 1024 threads of f32 have registers for 4.
template <typename T> constexpr int FUSED_VECTORS = sizeof(T) == 2 ? 14 : 4;
// The same for group_norm_fused_few, of which two blocks run at once on a multiprocessor, so that among many images one loads while
// the other waits for its parts or stores. Mirrored in src/gpu/group_norm.rs.
constexpr int FEW_VECTORS = 4;
// Splits of group_norm_stats at most, mirrored in src/gpu/group_norm.rs: two on each of 144 multiprocessors.
constexpr int MOST_SPLITS = 288;
// Blocks of group_norm_fused_few, _stats and _apply on a multiprocessor, and so the registers that they get.
template <typename T> constexpr int STREAMS = sizeof(T) == 2 ? 2 : 1;

// Adds up a group's part of the block's [lanes, width] arrays; the whole warp gets the result.
__device__ __forceinline__ float2 fold(const float* sums, const float* squares, int lanes, int width, int group,
                                       int channels) {
    float2 total = make_float2(0.f, 0.f);
    for (int j = threadIdx.x % 32; j < lanes * channels; j += 32) {
        int at = j / channels * width + group * channels + j % channels;
        total.x += sums[at];
        total.y += squares[at];
    }
    return make_float2(warp_sum(total.x), warp_sum(total.y));
}

// What a block of group_norm_fused adds up: a part of the rows of a slab of whole groups.
template <typename T> struct SlabPart {
    static constexpr int V = VEC<T>;
    int channels, groups;     // of a group; of the slab
    int width, lanes;         // channels of the slab; rows that the block walks at once
    int lane, column;         // this thread's
    int first_group;
    int first, rows;          // the part's first row; rows of this thread: first + lane, first + lane + lanes, ...

    __device__ __forceinline__ explicit SlabPart(const GroupNormArgs& a) {
        channels = a.c / a.groups, groups = a.groups / gridDim.x, width = groups * channels;
        const int vectors = width / V, part = (a.hw + gridDim.z - 1) / gridDim.z;
        lanes = GROUP_NORM_THREADS<T> / vectors, lane = threadIdx.x / vectors;
        column = blockIdx.x * width + threadIdx.x % vectors * V;
        first_group = blockIdx.x * groups, first = blockIdx.z * part;
        rows = lane < lanes ? (min(part, a.hw - first) - lane + lanes - 1) / lanes : 0;
    }

    __device__ __forceinline__ Groups<V> thread_groups() const {
        return Groups<V>(lane < lanes ? column : blockIdx.x * width, channels);
    }
};

template <typename T, int HELD> __device__ void group_norm_fused(const GroupNormArgs& a) {
    constexpr int V = VEC<T>, THREADS = GROUP_NORM_THREADS<T>;
    using Chunk = Vector<T, V>;
    __shared__ float2 of_warps[V][THREADS / 32], totals[V], statistics[V];
    const SlabPart<T> slab(a);
    const int channels = slab.channels, groups = slab.groups, lanes = slab.lanes, lane = slab.lane, column = slab.column;
    const int first = slab.first, rows = slab.rows, first_group = slab.first_group, warp = threadIdx.x / 32;
    const T* x = static_cast<const T*>(a.x) + size_t(blockIdx.y) * a.hw * a.x_pitch;
    T* out = static_cast<T*>(a.out) + size_t(blockIdx.y) * a.hw * a.out_pitch;

    const T* from = x + size_t(first + lane) * a.x_pitch + column;
    Chunk held[HELD], weight = {}, bias = {};
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (i < rows) held[i] = *reinterpret_cast<const Chunk*>(from + size_t(i * lanes) * a.x_pitch);
    const float shift = warp < groups ? to_float(x[(first_group + warp) * channels]) : 0.f;
    const Groups<V> group = slab.thread_groups();
    ChannelSums<T> mine(x, group, channels);
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (i < rows) mine.add(held[i]);
    sum_block(mine, group, first_group, groups, of_warps, totals);
    // Not sooner, the sums need the registers; nor later, the other parts are waited for meanwhile.
    if (lane < lanes) {
        weight = *reinterpret_cast<const Chunk*>(static_cast<const T*>(a.weight) + column);
        bias = *reinterpret_cast<const Chunk*>(static_cast<const T*>(a.bias) + column);
    }
    sync_parts();
    if (warp < groups) {
        const float2 total = sum_of_parts(totals + warp);
        if (threadIdx.x % 32 == 0) statistics[warp] = mean_rstd(total, float(a.hw) * channels, shift, a.eps);
    }
    __syncthreads();
    if (lane < lanes) {
        const Affine<T> affine(weight, bias, statistics, group, first_group);
        T* to = out + size_t(first + lane) * a.out_pitch + column;
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            forget(held[i]);
            if (i < rows) *reinterpret_cast<Chunk*>(to + size_t(i * lanes) * a.out_pitch) = affine(held[i], a.silu);
        }
    }
    wait_for_parts();
}

// Of each group of each image, behind the sums: where out is x, its first element is soon another.
__device__ __forceinline__ float* shifts(const GroupNormArgs& a) {
    return a.partial + size_t(2) * a.b * a.groups * a.splits;
}

template <typename T> __device__ void group_norm_stats(const GroupNormArgs& a) {
    constexpr int V = VEC<T>, THREADS = GROUP_NORM_THREADS<T>;
    __shared__ __align__(16) float sums[THREADS * V];
    __shared__ __align__(16) float squares[THREADS * V];
    const int channels = a.c / a.groups, vectors = a.c / V, lanes = THREADS / vectors;
    const int column = threadIdx.x % vectors * V, lane = threadIdx.x / vectors;
    const int split = blockIdx.x, image = blockIdx.y;
    const T* x = static_cast<const T*>(a.x) + size_t(image) * a.hw * a.x_pitch;

    if (lane < lanes) {
        ChannelSums<T> mine(x, Groups<V>(column, channels), channels);
        const int end = min(a.hw, (split + 1) * a.rows_per_split);
#pragma unroll 4
        for (int row = split * a.rows_per_split + lane; row < end; row += lanes)
            mine.add(*reinterpret_cast<const Vector<T, V>*>(x + size_t(row) * a.x_pitch + column));
        mine.leave(sums, squares, lane * a.c + column);
    }
    __syncthreads();
    for (int g = threadIdx.x / 32; g < a.groups; g += THREADS / 32) {
        float2 total = fold(sums, squares, lanes, a.c, g, channels);
        if (threadIdx.x % 32 == 0) {
            const size_t at = size_t(image) * a.groups + g;
            reinterpret_cast<float2*>(a.partial)[at * a.splits + split] = total;
            if (split == 0) shifts(a)[at] = to_float(x[g * channels]);
        }
    }
}

template <typename T> __device__ void group_norm_apply(const GroupNormArgs& a) {
    constexpr int V = VEC<T>, THREADS = GROUP_NORM_THREADS<T>, BATCH = 8 / sizeof(T);
    using Chunk = Vector<T, V>;
    extern __shared__ float2 statistics[];  // [groups]: mean, rstd
    const int channels = a.c / a.groups, vectors = a.c / V, lanes = THREADS / vectors;
    const int column = threadIdx.x % vectors * V, lane = threadIdx.x / vectors;
    const int image = blockIdx.y;
    const int first = blockIdx.x * a.rows_per_split, end = min(a.hw, first + a.rows_per_split);
    // This thread's last row.
    const size_t last = size_t(image) * a.hw + end - 1 - lane;
    const T* x = static_cast<const T*>(a.x) + last * a.x_pitch + column;
    T* out = static_cast<T*>(a.out) + last * a.out_pitch + column;
    int rows = lane < lanes ? (end - first - lane + lanes - 1) / lanes : 0;

    Chunk weight, bias;
    uint4 held[BATCH];
    // out may be x: a batch is read before it is written.
    auto load = [&] {
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (i < rows) held[i] = *reinterpret_cast<const uint4*>(x - size_t(i * lanes) * a.x_pitch);
        x -= size_t(BATCH * lanes) * a.x_pitch;
    };
    load();
    for (int g = threadIdx.x / 32; g < a.groups; g += THREADS / 32) {
        const size_t at = size_t(image) * a.groups + g;
        const float2* partial = reinterpret_cast<const float2*>(a.partial) + at * a.splits;
        const float shift = shifts(a)[at];
        float2 part[MOST_SPLITS / 32], total = make_float2(0.f, 0.f);
#pragma unroll
        for (int i = 0; i < MOST_SPLITS / 32; i++) {
            const int split = i * 32 + threadIdx.x % 32;
            part[i] = split < a.splits ? partial[split] : make_float2(0.f, 0.f);
        }
#pragma unroll
        for (int i = 0; i < MOST_SPLITS / 32; i++) total.x += part[i].x, total.y += part[i].y;
        total = make_float2(warp_sum(total.x), warp_sum(total.y));
        if (threadIdx.x % 32 == 0) statistics[g] = mean_rstd(total, float(a.hw) * channels, shift, a.eps);
    }
    if (lane < lanes) {
        weight = *reinterpret_cast<const Chunk*>(static_cast<const T*>(a.weight) + column);
        bias = *reinterpret_cast<const Chunk*>(static_cast<const T*>(a.bias) + column);
    }
    __syncthreads();
    if (lane >= lanes) return;
    const Affine<T> affine(weight, bias, statistics, Groups<V>(column, channels), 0);
    while (rows > 0) {
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const Chunk& v = reinterpret_cast<const Chunk&>(held[i]);
            if (i < rows) *reinterpret_cast<Chunk*>(out - size_t(i * lanes) * a.out_pitch) = affine(v, a.silu);
        }
        out -= size_t(BATCH * lanes) * a.out_pitch;
        rows -= BATCH;
        load();
    }
}

#define INSTANTIATE(NAME, T)                                                        \
    extern "C" __global__ void __launch_bounds__(GROUP_NORM_THREADS<T>)             \
        group_norm_fused_##NAME(const __grid_constant__ GroupNormArgs a) {          \
        after_previous_kernel();                                                    \
        group_norm_fused<T, FUSED_VECTORS<T>>(a);                                   \
    }                                                                               \
    extern "C" __global__ void __launch_bounds__(GROUP_NORM_THREADS<T>, STREAMS<T>) \
        group_norm_fused_few_##NAME(const __grid_constant__ GroupNormArgs a) {      \
        after_previous_kernel();                                                    \
        group_norm_fused<T, FEW_VECTORS>(a);                                        \
    }                                                                               \
    extern "C" __global__ void __launch_bounds__(GROUP_NORM_THREADS<T>, STREAMS<T>) \
        group_norm_stats_##NAME(const __grid_constant__ GroupNormArgs a) {          \
        after_previous_kernel();                                                    \
        group_norm_stats<T>(a);                                                     \
    }                                                                               \
    extern "C" __global__ void __launch_bounds__(GROUP_NORM_THREADS<T>, STREAMS<T>) \
        group_norm_apply_##NAME(const __grid_constant__ GroupNormArgs a) {          \
        after_previous_kernel();                                                    \
        group_norm_apply<T>(a);                                                     \
    }

INSTANTIATE(f16, half)
INSTANTIATE(bf16, __nv_bfloat16)
INSTANTIATE(f32, float)
