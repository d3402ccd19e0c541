// LayerNorm: y = (x - mean) * rstd * weight + bias over each row of x [m,c]. One warp per row, which is held in registers
// between the three passes.
//
// SD 1.5: m 128..8192, c 320..1280.
// Test: cargo test --release --test kernels norm        Bench: cargo bench --bench kernels layer_norm
#include "common.cuh"

template <typename T> constexpr int VEC = 16 / sizeof(T);

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
