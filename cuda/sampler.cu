// What a denoising step does around the U-Net: model_input in front of it, sampler_step after it.
//
// A sampler is a table (src/sampler/mod.rs); the row is chosen by index[image], which the end of each step
// (steps.cuh) increments. So steps, sampler, guidance, seed and prompt are data, and one
// captured graph serves every request.
//
// cargo test --release --test kernels sampler
#include "common.cuh"

// Layout of a packed row, as sampler::Row::pack writes it.
constexpr int ROW_WIDTH = 22, IN_SCALE = 0, NEXT = 1, SAVE = 9, REMEMBER = 17, KNOWN = 20;
constexpr int BASIS = 8;    // x, e, saved, noise, h0, h1, h2, h3
constexpr int HISTORY = 4;  // entries of an image's history
constexpr int THREADS = 256;

// out[r] = x[i] * in_scale: the first rows - b images are shown twice
template <typename T> __device__ void model_input(const ModelInputArgs& a) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= size_t(a.rows) * a.n) return;
    const int shown = i / a.n, guided = a.rows - a.b;
    const int image = shown < guided ? shown : shown - guided;
    const float in_scale = a.table[a.index[image] * ROW_WIDTH + IN_SCALE];
    const size_t out = i / a.c * a.out_pitch + i % a.c;
    static_cast<T*>(a.out)[out] = from_float<T>(a.x[size_t(image) * a.n + i % a.n] * in_scale);
}

// The block's sums of x and y, in a fixed order: every thread of every block that sums the same gets the same bits.
__device__ __forceinline__ float2 block_sum(float x, float y) {
    __shared__ float2 warps[THREADS / 32];
    x = warp_sum(x);
    y = warp_sum(y);
    __syncthreads();  // an earlier call's sums have been read
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = make_float2(x, y);
    __syncthreads();
    float2 total = warps[0];
#pragma unroll
    for (int w = 1; w < THREADS / 32; w++) {
        total.x += warps[w].x;
        total.y += warps[w].y;
    }
    return total;
}

__device__ __forceinline__ float guide(float u, float c, float guidance) { return u + guidance * (c - u); }

// phi * std(c) / std(g) + (1 - phi) over an image's n numbers, with g = guide(u, c). The mean comes first, so that
// nothing cancels. Each block reads the whole image: 16k to 64k numbers, which the cache holds.
template <typename T>
__device__ float rescale_factor(const T* __restrict__ u, const T* __restrict__ c, int n, float guidance, float phi) {
    float2 sum = make_float2(0.f, 0.f);
#pragma unroll 8
    for (int i = threadIdx.x; i < n; i += THREADS) {
        const float conditional = to_float(c[i]);
        sum.x += conditional;
        sum.y += guide(to_float(u[i]), conditional, guidance);
    }
    float2 mean = block_sum(sum.x, sum.y);
    mean.x /= n;
    mean.y /= n;
    float2 square = make_float2(0.f, 0.f);
#pragma unroll 8
    for (int i = threadIdx.x; i < n; i += THREADS) {
        const float conditional = to_float(c[i]);
        const float x = conditional - mean.x;
        const float y = guide(to_float(u[i]), conditional, guidance) - mean.y;
        square.x += x * x;
        square.y += y * y;
    }
    const float2 squares = block_sum(square.x, square.y);
    return phi * sqrtf(squares.x / squares.y) + (1.f - phi);
}

// Guidance, then two linear combinations of the basis, and the history shifted by one if the row says so; then what is known.
// Grid (chunks of an image, b).
template <typename T> __device__ void sampler_step(const SamplerStepArgs& a) {
    const int image = blockIdx.y;
    const bool guided = image < a.guided;
    const T* unconditional = static_cast<const T*>(a.output) + size_t(image) * a.n;
    const T* conditional = unconditional + size_t(a.guided) * a.n;
    float factor = 1.f;
    if (guided && a.guidance_rescale[image] != 0.f)  // the same for the whole block
        factor = rescale_factor(unconditional, conditional, a.n, a.guidance[image], a.guidance_rescale[image]);
    const int at = blockIdx.x * THREADS + threadIdx.x;
    if (at >= a.n) return;
    const size_t i = size_t(image) * a.n + at;
    const int step = a.index[image];
    const float* row = a.table + step * ROW_WIDTH;
    float* history = a.history + size_t(image) * HISTORY * a.n + at;

    float e = to_float(conditional[at]);
    if (guided) e = factor * guide(to_float(unconditional[at]), e, a.guidance[image]);

    // A zero coefficient leaves its term out: what was never written may hold a NaN.
    float basis[BASIS];
#pragma unroll
    for (int j = 0; j < BASIS; j++) {
        const bool used = row[NEXT + j] != 0.f || row[SAVE + j] != 0.f || (row[REMEMBER] != 0.f && j >= 4);
        basis[j] = 0.f;
        if (j == 0) basis[j] = a.x[i];
        else if (j == 1) basis[j] = e;
        else if (!used) continue;
        else if (j == 2) basis[j] = a.saved[i];
        else if (j == 3) basis[j] = a.noise[size_t(step) * a.n + at];
        else basis[j] = history[(j - 4) * a.n];
    }
    float next = 0.f, save = 0.f;
#pragma unroll
    for (int j = 0; j < BASIS; j++) {
        if (row[NEXT + j] != 0.f) next += row[NEXT + j] * basis[j];
        if (row[SAVE + j] != 0.f) save += row[SAVE + j] * basis[j];
    }
    if (row[REMEMBER] != 0.f) {
#pragma unroll
        for (int j = HISTORY - 1; j > 0; j--) history[j * a.n] = basis[4 + j - 1];
        history[0] = row[REMEMBER + 1] * basis[0] + row[REMEMBER + 2] * e;
    }
    if (a.mask) {
        const float mask = a.mask[i / a.c];
        if (mask != 1.f) {
            float known = 0.f;
            if (row[KNOWN] != 0.f) known += row[KNOWN] * a.known[i];
            if (row[KNOWN + 1] != 0.f) known += row[KNOWN + 1] * a.known_noise[i];
            next = mask == 0.f ? known : mask * next + (1.f - mask) * known;
        }
    }
    a.x[i] = next;
    a.saved[i] = save;
}

#define INSTANTIATE(SUFFIX, T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) model_input_##SUFFIX(const __grid_constant__ ModelInputArgs a) { \
        after_previous_kernel();                                                                                       \
        model_input<T>(a);                                                                                             \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        sampler_step_##SUFFIX(const __grid_constant__ SamplerStepArgs a) {                                             \
        after_previous_kernel();                                                                                       \
        sampler_step<T>(a);                                                                                            \
    }

INSTANTIATE(f16, half)
INSTANTIATE(bf16, __nv_bfloat16)
INSTANTIATE(f32, float)
