// GroupNorm (+ SiLU) and LayerNorm.
//
// group_norm: y = (x - mean) * rstd * weight + bias, statistics over the pixels and adjacent channels of
// one group of one image; x is [b,hw,c]. Small maps take one launch, the others two:
//   group_norm_fused:  grid (slabs of whole groups, b, parts of the rows). A block keeps its channels of its rows
//                      in registers, sums, folds the sums into groups, and writes the result. Where there are
//                      several parts (Hopper), they are a cluster, whose blocks read one another's sums.
//   group_norm_stats:  grid (splits, b). A block walks its rows with all channels, so every load is a full
//                      line, and writes partial[b,group,split].
//   group_norm_apply:  grid (row chunks, b). Folds the partials in a fixed order, turns them into one scale
//                      and one offset per channel, kept in registers, and walks its rows.
// In all of them a thread owns 16 bytes of channels, and the same bits come out of every run.
// 1. Sums are of x - shift with shift = the group's first element: no cancellation when |mean| >> std.
// 2. A vector of channels may straddle groups (320/32 = 10): sums are per channel until the block's fold. A
//    slab has so many groups that it is made of whole vectors (4 of 10 channels).
// 3. What does not depend on the statistics is loaded before they are folded.
// SD 1.5: hw 64..4096, c 320..2560; the VAE: hw up to 262144, c 128..512.
//
// layer_norm: one warp per row, the row held in registers between the three passes.
//
// cargo test --release --test kernels norm; cargo bench --bench kernels norm
#include "common.cuh"
#include "hopper.cuh"

template <typename T> constexpr int VEC = 16 / sizeof(T);
// 4096 channels at most, whatever the dtype.
template <typename T> constexpr int GROUP_NORM_THREADS = 4096 / VEC<T>;
// Vectors of x that a thread of group_norm_fused holds. 32x32 maps of 640 channels need 11, 14 let 64x64 maps be in 3
// parts; the 1024 threads of f32 have registers for 4.
template <typename T> constexpr int FUSED_VECTORS = sizeof(T) == 2 ? 14 : 4;

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
    float sum[V] = {}, square[V] = {}, shift[V];

    // `row` is the image's first row, `channels` those of a group.
    __device__ __forceinline__ ChannelSums(const T* row, const Groups<V>& groups, int channels) {
#pragma unroll
        for (int j = 0; j < V; j++) shift[j] = to_float(row[groups.of[j] * channels]);
    }

    __device__ __forceinline__ void add(const Vector<T, V>& x) {
#pragma unroll
        for (int j = 0; j < V; j++) {
            float d = to_float(x.v[j]) - shift[j];
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

    __device__ __forceinline__ Vector<T, V> operator()(const Vector<T, V>& x, bool with_silu) const {
        Vector<T, V> y;
#pragma unroll
        for (int j = 0; j < V; j++) {
            float f = to_float(x.v[j]) * scale[j] + offset[j];
            y.v[j] = from_float<T>(with_silu ? silu(f) : f);
        }
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

template <typename T> __device__ void group_norm_fused(const GroupNormArgs& a) {
    constexpr int V = VEC<T>, THREADS = GROUP_NORM_THREADS<T>, WARPS = THREADS / 32;
    using Chunk = Vector<T, V>;
    // A slab has V groups at most.
    __shared__ float2 of_warps[V][WARPS], totals[V], statistics[V];
    const int channels = a.c / a.groups, groups = a.groups / gridDim.x;
    const int width = groups * channels, vectors = width / V, lanes = THREADS / vectors;
    const int lane = threadIdx.x / vectors, slab_column = threadIdx.x % vectors * V;
    const int column = blockIdx.x * width + slab_column;
    const int warp = threadIdx.x / 32;
    const T* x = static_cast<const T*>(a.x) + size_t(blockIdx.y) * a.hw * a.x_pitch;
    T* out = static_cast<T*>(a.out) + size_t(blockIdx.y) * a.hw * a.out_pitch;
    const int part = (a.hw + gridDim.z - 1) / gridDim.z, first = blockIdx.z * part;

    // Rows of this thread: first + lane, first + lane + lanes, ...
    const int rows = lane < lanes ? (min(part, a.hw - first) - lane + lanes - 1) / lanes : 0;
    const T* from = x + size_t(first + lane) * a.x_pitch + column;
    Chunk held[FUSED_VECTORS<T>], weight = {}, bias = {};
#pragma unroll
    for (int i = 0; i < FUSED_VECTORS<T>; i++)
        if (i < rows) held[i] = *reinterpret_cast<const Chunk*>(from + size_t(i * lanes) * a.x_pitch);
    if (lane < lanes) {
        weight = *reinterpret_cast<const Chunk*>(static_cast<const T*>(a.weight) + column);
        bias = *reinterpret_cast<const Chunk*>(static_cast<const T*>(a.bias) + column);
    }
    const float shift = warp < groups ? to_float(x[blockIdx.x * width + warp * channels]) : 0.f;
    const int first_group = blockIdx.x * groups;
    const Groups<V> group(lane < lanes ? column : 0, channels);
    ChannelSums<T> mine(x, group, channels);
#pragma unroll
    for (int i = 0; i < FUSED_VECTORS<T>; i++)
        if (i < rows) mine.add(held[i]);
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
        for (int i = 0; i < FUSED_VECTORS<T>; i++) {
            forget(held[i]);
            if (i < rows) *reinterpret_cast<Chunk*>(to + size_t(i * lanes) * a.out_pitch) = affine(held[i], a.silu);
        }
    }
    wait_for_parts();
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
        float2* out = reinterpret_cast<float2*>(a.partial) + (size_t(image) * a.groups + g) * a.splits + split;
        if (threadIdx.x % 32 == 0) *out = total;
    }
}

template <typename T> __device__ void group_norm_apply(const GroupNormArgs& a) {
    constexpr int V = VEC<T>, THREADS = GROUP_NORM_THREADS<T>;
    using Chunk = Vector<T, V>;
    extern __shared__ float2 statistics[];  // [groups]: mean, rstd
    const int channels = a.c / a.groups, vectors = a.c / V, lanes = THREADS / vectors;
    const int column = threadIdx.x % vectors * V, lane = threadIdx.x / vectors;
    const int image = blockIdx.y;
    const T* x = static_cast<const T*>(a.x) + size_t(image) * a.hw * a.x_pitch;
    T* out = static_cast<T*>(a.out) + size_t(image) * a.hw * a.out_pitch;
    const int rows = (a.hw + gridDim.x - 1) / gridDim.x;
    const int first = blockIdx.x * rows + lane, end = min(a.hw, int(blockIdx.x + 1) * rows);

    Chunk weight, bias;
    if (lane < lanes) {
        weight = *reinterpret_cast<const Chunk*>(static_cast<const T*>(a.weight) + column);
        bias = *reinterpret_cast<const Chunk*>(static_cast<const T*>(a.bias) + column);
    }
    for (int g = threadIdx.x / 32; g < a.groups; g += THREADS / 32) {
        const float2* partial = reinterpret_cast<const float2*>(a.partial) + (size_t(image) * a.groups + g) * a.splits;
        float2 total = make_float2(0.f, 0.f);
        for (int split = threadIdx.x % 32; split < a.splits; split += 32) {
            total.x += partial[split].x;
            total.y += partial[split].y;
        }
        total = make_float2(warp_sum(total.x), warp_sum(total.y));
        float shift = to_float(x[g * channels]);
        if (threadIdx.x % 32 == 0) statistics[g] = mean_rstd(total, float(a.hw) * channels, shift, a.eps);
    }
    __syncthreads();
    if (lane >= lanes) return;
    const Affine<T> affine(weight, bias, statistics, Groups<V>(column, channels), 0);
#pragma unroll 4
    for (int row = first; row < end; row += lanes) {
        Chunk v = *reinterpret_cast<const Chunk*>(x + size_t(row) * a.x_pitch + column);
        *reinterpret_cast<Chunk*>(out + size_t(row) * a.out_pitch + column) = affine(v, a.silu);
    }
}

// Rows of up to CHANNELS channels, grid (m / 8), 8 warps.
template <typename T, int CHANNELS> __device__ void layer_norm(const LayerNormArgs& a) {
    constexpr int V = VEC<T>, LOADS = CHANNELS / (32 * V);
    const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= a.m) return;
    const T* x = static_cast<const T*>(a.x) + size_t(row) * a.x_pitch;
    T* out = static_cast<T*>(a.out) + size_t(row) * a.out_pitch;

    Vector<T, V> v[LOADS];
    float sum = 0;
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        int c = (i * 32 + lane) * V;
        if (c < a.c) {
            v[i] = *reinterpret_cast<const Vector<T, V>*>(x + c);
#pragma unroll
            for (int j = 0; j < V; j++) sum += to_float(v[i].v[j]);
        }
    }
    const float mean = warp_sum(sum) / a.c;
    float square = 0;
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        if ((i * 32 + lane) * V < a.c) {
#pragma unroll
            for (int j = 0; j < V; j++) {
                float d = to_float(v[i].v[j]) - mean;
                square += d * d;
            }
        }
    }
    const float rstd = rsqrtf(warp_sum(square) / a.c + a.eps);
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        int c = (i * 32 + lane) * V;
        if (c < a.c) {
            auto weight = *reinterpret_cast<const Vector<T, V>*>(static_cast<const T*>(a.weight) + c);
            auto bias = *reinterpret_cast<const Vector<T, V>*>(static_cast<const T*>(a.bias) + c);
            Vector<T, V> y;
#pragma unroll
            for (int j = 0; j < V; j++) {
                float f = (to_float(v[i].v[j]) - mean) * rstd;
                y.v[j] = from_float<T>(f * to_float(weight.v[j]) + to_float(bias.v[j]));
            }
            *reinterpret_cast<Vector<T, V>*>(out + c) = y;
        }
    }
}

#define INSTANTIATE(NAME, T)                                               \
    extern "C" __global__ void __launch_bounds__(GROUP_NORM_THREADS<T>)    \
        group_norm_fused_##NAME(const __grid_constant__ GroupNormArgs a) { \
        after_previous_kernel();                                           \
        group_norm_fused<T>(a);                                            \
    }                                                                      \
    extern "C" __global__ void __launch_bounds__(GROUP_NORM_THREADS<T>)    \
        group_norm_stats_##NAME(const __grid_constant__ GroupNormArgs a) { \
        after_previous_kernel();                                           \
        group_norm_stats<T>(a);                                            \
    }                                                                      \
    extern "C" __global__ void __launch_bounds__(GROUP_NORM_THREADS<T>)    \
        group_norm_apply_##NAME(const __grid_constant__ GroupNormArgs a) { \
        after_previous_kernel();                                           \
        group_norm_apply<T>(a);                                            \
    }

INSTANTIATE(f16, half)
INSTANTIATE(bf16, __nv_bfloat16)
INSTANTIATE(f32, float)

// Fewer channels, fewer registers, more rows at once: faster for 8192 rows of 320 channels, not for fewer (cuda/LOG.md).
#define LAYER_NORM(NAME, T, CHANNELS)                                             \
    extern "C" __global__ void __launch_bounds__(256)                             \
        layer_norm_##CHANNELS##_##NAME(const __grid_constant__ LayerNormArgs a) { \
        after_previous_kernel();                                                  \
        layer_norm<T, CHANNELS>(a);                                               \
    }
LAYER_NORM(f16, half, 512)
LAYER_NORM(f16, half, 2048)
LAYER_NORM(bf16, __nv_bfloat16, 512)
LAYER_NORM(bf16, __nv_bfloat16, 2048)
LAYER_NORM(f32, float, 512)
LAYER_NORM(f32, float, 2048)
