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

// out[r] = x[slot] * in_scale, then what is beside it, then zeros
template <typename T> __device__ void model_input(const ModelInputArgs& a) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= size_t(a.rows) * a.pixels * a.out_c) return;
    const int column = i % a.out_c, row = i / a.out_c / a.pixels;
    const size_t at = i / a.out_c;  // of all rows and pixels
    const size_t from = size_t(a.slot[row]) * a.pixels + at % a.pixels;
    float value = 0.f;
    if (column < a.c)
        value = a.x[from * a.c + column] * a.table[a.index[row] * ROW_WIDTH + IN_SCALE];
    else if (column < a.c + a.e && a.shown[row])
        value = to_float(static_cast<const T*>(a.beside)[from * a.e + column - a.c]);
    static_cast<T*>(a.out)[at * a.out_pitch + column] = from_float<T>(value);
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

// The guided output of an image.
template <typename T> struct Guided {
    const T* c;  // conditional
    const T* u;  // unconditional
    const T* m;  // with the image, without the prompt; null where there is none
    float scale, image_scale;

    __device__ __forceinline__ float at(int i, float conditional) const {
        const float unconditional = to_float(u[i]);
        if (!m) return unconditional + scale * (conditional - unconditional);
        const float image = to_float(m[i]);
        return unconditional + image_scale * (image - unconditional) + scale * (conditional - image);
    }
};

// phi * std(c) / std(g) + (1 - phi) over an image's n numbers, with g the guided ones. The mean comes first, so that
// nothing cancels. Each block reads the whole image: 16k to 64k numbers, which the cache holds.
template <typename T> __device__ float rescale_factor(const Guided<T>& guided, int n, float phi) {
    float2 sum = make_float2(0.f, 0.f);
#pragma unroll 8
    for (int i = threadIdx.x; i < n; i += THREADS) {
        const float conditional = to_float(guided.c[i]);
        sum.x += conditional;
        sum.y += guided.at(i, conditional);
    }
    float2 mean = block_sum(sum.x, sum.y);
    mean.x /= n;
    mean.y /= n;
    float2 square = make_float2(0.f, 0.f);
#pragma unroll 8
    for (int i = threadIdx.x; i < n; i += THREADS) {
        const float conditional = to_float(guided.c[i]);
        const float x = conditional - mean.x;
        const float y = guided.at(i, conditional) - mean.y;
        square.x += x * x;
        square.y += y * y;
    }
    const float2 squares = block_sum(square.x, square.y);
    return phi * sqrtf(squares.x / squares.y) + (1.f - phi);
}

// Guidance, then two linear combinations of the basis, and the history shifted by one if the row says so; then what is known.
// Grid (chunks of an image, b).
template <typename T> __device__ void sampler_step(const SamplerStepArgs& a) {
    const int image = blockIdx.y, slot = a.slot[image];
    const float* guidance = a.guidance + slot * 3;
    const auto output = [&](int row) { return static_cast<const T*>(a.output) + size_t(row) * a.n; };
    const int unconditional = a.rows[image * 3 + 1], with_image = a.rows[image * 3 + 2];
    const bool is_guided = unconditional >= 0;
    Guided<T> guided{output(a.rows[image * 3]), nullptr, nullptr, guidance[0], guidance[2]};
    if (is_guided) guided.u = output(unconditional);
    if (with_image >= 0) guided.m = output(with_image);
    float factor = 1.f;
    if (is_guided && guidance[1] != 0.f)  // the same for the whole block
        factor = rescale_factor(guided, a.n, guidance[1]);
    const int at = blockIdx.x * THREADS + threadIdx.x;
    if (at >= a.n) return;
    const size_t i = size_t(slot) * a.n + at;
    const int step = a.index[image];
    const float* row = a.table + step * ROW_WIDTH;
    float* history = a.history + size_t(slot) * HISTORY * a.n + at;

    float e = to_float(guided.c[at]);
    if (is_guided) e = factor * guided.at(at, e);

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
