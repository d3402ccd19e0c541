// GroupNorm (+ SiLU) and LayerNorm.
//
// group_norm: y = (x - mean) * rstd * weight + bias, statistics over the pixels and adjacent channels of
// one group of one image; x is [b,hw,c]. Two launches:
//   group_norm_stats:  grid (splits, b). A block walks its rows with all channels, so every load is a full
//                      line; each thread keeps the sums of its own 16 bytes of channels, then the block
//                      folds threads and channels into groups and writes partial[b,split,g].
//   group_norm_apply:  grid (row chunks, b). Folds the partials in a fixed order (the same bits on every
//                      run), turns them into one scale and one offset per channel, kept in registers.
// 1. Sums are of x - shift with shift = the group's first element: no cancellation when |mean| >> std.
// 2. A vector of channels may straddle groups (320/32 = 10): sums are per channel until the block's fold.
// SD 1.5: hw 64..4096, c 320..2560; the VAE: hw up to 262144, c 128..512.
//
// layer_norm: one warp per row, the row held in registers between the three passes.
//
// cargo test --release --test kernels norm; cargo bench --bench kernels norm
#include "common.cuh"

template <typename T> constexpr int VEC = 16 / sizeof(T);
// 4096 channels at most, whatever the dtype.
template <typename T> constexpr int GROUP_NORM_THREADS = 4096 / VEC<T>;

template <typename T> __device__ void group_norm_stats(const GroupNormArgs& a) {
    constexpr int V = VEC<T>;
    __shared__ float sums[GROUP_NORM_THREADS<T> * V];
    __shared__ float squares[GROUP_NORM_THREADS<T> * V];
    const int vectors = a.c / V;
    const int lanes = GROUP_NORM_THREADS<T> / vectors;  // rows walked at once
    const int column = threadIdx.x % vectors, lane = threadIdx.x / vectors;
    const int split = blockIdx.x, image = blockIdx.y;
    const int channels = a.c / a.groups;
    const T* x = static_cast<const T*>(a.x) + size_t(image) * a.hw * a.x_pitch;

    if (lane < lanes) {
        float sum[V] = {}, square[V] = {}, shift[V];
#pragma unroll
        for (int j = 0; j < V; j++) {
            int c = column * V + j;
            shift[j] = to_float(x[c - c % channels]);
        }
        const int end = min(a.hw, (split + 1) * a.rows_per_split);
        for (int row = split * a.rows_per_split + lane; row < end; row += lanes) {
            auto v = *reinterpret_cast<const Vector<T, V>*>(x + size_t(row) * a.x_pitch + column * V);
#pragma unroll
            for (int j = 0; j < V; j++) {
                float d = to_float(v.v[j]) - shift[j];
                sum[j] += d;
                square[j] += d * d;
            }
        }
#pragma unroll
        for (int j = 0; j < V; j++) {
            sums[lane * a.c + column * V + j] = sum[j];
            squares[lane * a.c + column * V + j] = square[j];
        }
    }
    __syncthreads();

    const int warp = threadIdx.x / 32, thread = threadIdx.x % 32;
    for (int g = warp; g < a.groups; g += GROUP_NORM_THREADS<T> / 32) {
        float sum = 0, square = 0;
        for (int j = thread; j < lanes * channels; j += 32) {
            int at = j / channels * a.c + g * channels + j % channels;
            sum += sums[at];
            square += squares[at];
        }
        sum = warp_sum(sum);
        square = warp_sum(square);
        if (thread == 0) {
            float* out = a.partial + ((size_t(image) * a.splits + split) * a.groups + g) * 2;
            out[0] = sum;
            out[1] = square;
        }
    }
}

template <typename T> __device__ void group_norm_apply(const GroupNormArgs& a) {
    constexpr int V = VEC<T>;
    extern __shared__ float statistics[];  // [groups,2]: mean, rstd
    const int vectors = a.c / V;
    const int lanes = GROUP_NORM_THREADS<T> / vectors;
    const int column = threadIdx.x % vectors, lane = threadIdx.x / vectors;
    const int image = blockIdx.y;
    const int channels = a.c / a.groups;
    const T* x = static_cast<const T*>(a.x) + size_t(image) * a.hw * a.x_pitch;
    T* out = static_cast<T*>(a.out) + size_t(image) * a.hw * a.out_pitch;

    const int warp = threadIdx.x / 32, thread = threadIdx.x % 32;
    for (int g = warp; g < a.groups; g += GROUP_NORM_THREADS<T> / 32) {
        float sum = 0, square = 0;
        for (int split = thread; split < a.splits; split += 32) {
            const float* partial = a.partial + ((size_t(image) * a.splits + split) * a.groups + g) * 2;
            sum += partial[0];
            square += partial[1];
        }
        sum = warp_sum(sum);
        square = warp_sum(square);
        if (thread == 0) {
            float n = float(a.hw) * channels;
            float mean = sum / n;
            float variance = fmaxf(square / n - mean * mean, 0.f);
            statistics[2 * g] = mean + to_float(x[g * channels]);
            statistics[2 * g + 1] = rsqrtf(variance + a.eps);
        }
    }
    __syncthreads();
    if (lane >= lanes) return;

    float scale[V], offset[V];
    auto weight = *reinterpret_cast<const Vector<T, V>*>(static_cast<const T*>(a.weight) + column * V);
    auto bias = *reinterpret_cast<const Vector<T, V>*>(static_cast<const T*>(a.bias) + column * V);
#pragma unroll
    for (int j = 0; j < V; j++) {
        int g = (column * V + j) / channels;
        scale[j] = to_float(weight.v[j]) * statistics[2 * g + 1];
        offset[j] = to_float(bias.v[j]) - statistics[2 * g] * scale[j];
    }
    const int rows = (a.hw + gridDim.x - 1) / gridDim.x;
    const int end = min(a.hw, int(blockIdx.x + 1) * rows);
    for (int row = blockIdx.x * rows + lane; row < end; row += lanes) {
        auto v = *reinterpret_cast<const Vector<T, V>*>(x + size_t(row) * a.x_pitch + column * V);
        Vector<T, V> y;
#pragma unroll
        for (int j = 0; j < V; j++) {
            float f = to_float(v.v[j]) * scale[j] + offset[j];
            y.v[j] = from_float<T>(a.silu ? silu(f) : f);
        }
        *reinterpret_cast<Vector<T, V>*>(out + size_t(row) * a.out_pitch + column * V) = y;
    }
}

// Rows of up to 2048 channels, grid (m / 8), 8 warps.
template <typename T> __device__ void layer_norm(const LayerNormArgs& a) {
    constexpr int V = VEC<T>, LOADS = 2048 / (32 * V);
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

#define INSTANTIATE(NAME, T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(GROUP_NORM_THREADS<T>)                                                 \
        group_norm_stats_##NAME(const __grid_constant__ GroupNormArgs a) {                                           \
        group_norm_stats<T>(a);                                                                                      \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(GROUP_NORM_THREADS<T>)                                                 \
        group_norm_apply_##NAME(const __grid_constant__ GroupNormArgs a) {                                           \
        group_norm_apply<T>(a);                                                                                      \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(256) layer_norm_##NAME(const __grid_constant__ LayerNormArgs a) {   \
        layer_norm<T>(a);                                                                                            \
    }

INSTANTIATE(f16, half)
INSTANTIATE(bf16, __nv_bfloat16)
INSTANTIATE(f32, float)
