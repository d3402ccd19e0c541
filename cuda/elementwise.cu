// What touches every element once or twice: activate, accumulate, geglu, scale, embed, emphasize, timestep_embedding, to_rgb8.
//
// All of them are bound by memory: 16 bytes a thread where rows allow it, a grid that covers the tensor.
//
// cargo test --release --test kernels elementwise; cargo bench --bench kernels geglu
#include "common.cuh"

template <typename T> constexpr int VEC = 16 / sizeof(T);

__device__ __forceinline__ size_t thread_index() { return size_t(blockIdx.x) * blockDim.x + threadIdx.x; }

__device__ __forceinline__ float activated(int kind, float x) {
    switch (kind) {
        case 0: return silu(x);
        case 1: return gelu(x);
        case 2: return quick_gelu(x);
        case 3: return x < 0.f ? 0.f : x;           // relu
        case 4: return 3.f * tanhf(x * (1.f / 3));  // tanh3
        case 5: return 2.f * x - 1.f;               // from_unit
        case 6: return 0.5f * x + 0.5f;             // to_unit
        default: return x;                          // identity
    }
}

// out[m,n] = f(x[m,n]): a vector a thread, and what is left at the end of a row one by one.
template <typename T> __device__ void activate(const ActivateArgs& a) {
    constexpr int V = VEC<T>;
    const int vectors = (a.n + V - 1) / V;
    const size_t i = thread_index();
    if (i >= size_t(a.m) * vectors) return;
    const size_t row = i / vectors;
    const int column = i % vectors * V;
    const T* x = static_cast<const T*>(a.x) + row * a.x_pitch + column;
    T* out = static_cast<T*>(a.out) + row * a.out_pitch + column;
    if (column + V > a.n) {
        for (int j = 0; j < a.n - column; j++) out[j] = from_float<T>(activated(a.kind, to_float(x[j])));
        return;
    }
    auto v = *reinterpret_cast<const Vector<T, V>*>(x);
#pragma unroll
    for (int j = 0; j < V; j++) v.v[j] = from_float<T>(activated(a.kind, to_float(v.v[j])));
    *reinterpret_cast<Vector<T, V>*>(out) = v;
}

// x[m,n] += gain * y[m,n], one gain an image; n a multiple of the vector.
template <typename T> __device__ void accumulate(const AccumulateArgs& a) {
    constexpr int V = VEC<T>;
    const int vectors = a.n / V;
    const size_t i = thread_index();
    if (i >= size_t(a.m) * vectors) return;
    const size_t row = i / vectors, column = i % vectors * V;
    const float gain = a.gains[a.index[row / a.t]];
    if (gain == 0.f) return;
    T* x = static_cast<T*>(a.x) + row * a.x_pitch + column;
    auto sum = *reinterpret_cast<Vector<T, V>*>(x);
    const auto y = *reinterpret_cast<const Vector<T, V>*>(static_cast<const T*>(a.y) + row * a.y_pitch + column);
#pragma unroll
    for (int j = 0; j < V; j++) sum.v[j] = from_float<T>(to_float(sum.v[j]) + gain * to_float(y.v[j]));
    *reinterpret_cast<Vector<T, V>*>(x) = sum;
}

// out[m,n] = x[m,:n] * gelu(x[m,n:])
template <typename T> __device__ void geglu(const GegluArgs& a) {
    constexpr int V = VEC<T>;
    const int vectors = a.n / V;
    const size_t i = thread_index();
    if (i >= size_t(a.m) * vectors) return;
    const size_t row = i / vectors, column = i % vectors * V;
    const T* x = static_cast<const T*>(a.x) + row * a.x_pitch + column;
    auto v = *reinterpret_cast<const Vector<T, V>*>(x);
    const auto gate = *reinterpret_cast<const Vector<T, V>*>(x + a.n);
#pragma unroll
    for (int j = 0; j < V; j++) v.v[j] = from_float<T>(to_float(v.v[j]) * gelu(to_float(gate.v[j])));
    *reinterpret_cast<Vector<T, V>*>(static_cast<T*>(a.out) + row * a.out_pitch + column) = v;
}

// out[i] = x[i] * factor[j] + summand[j], j the channel mod 16
template <typename T> __device__ void scale(const ScaleArgs& a) {
    const size_t i = thread_index();
    if (i >= a.n) return;
    const int channel = i % a.c % 16;
    static_cast<T*>(a.out)[i] = from_float<T>(a.x[i] * a.factor[channel] + a.summand[channel]);
}

// out[b*t,c] = tokens[ids[b*t],c] + positions[t,c]
template <typename T> __device__ void embed(const EmbedArgs& a) {
    const size_t i = thread_index();
    if (i >= size_t(a.m) * a.c) return;
    const int row = i / a.c, c = i % a.c;
    // Unsigned: a negative id is out of range too.
    const unsigned id = min(unsigned(a.ids[row]), unsigned(a.vocabulary - 1));
    const float token = to_float(static_cast<const T*>(a.tokens)[size_t(id) * a.tokens_pitch + c]);
    const T* positions = static_cast<const T*>(a.positions);
    const float position = positions ? to_float(positions[size_t(row % a.t) * a.c + c]) : 0.f;
    static_cast<T*>(a.out)[size_t(row) * a.out_pitch + c] = from_float<T>(token + position);
}

// x[b,t] *= weight[b,t] * r[b], r the mean before over the mean after. One block an image, so that the two sums
// have one order: a prompt is small, and encoded once.
template <typename T> __device__ void emphasize(const EmphasizeArgs& a) {
    T* x = static_cast<T*>(a.x) + size_t(blockIdx.x) * a.t * a.pitch;
    const float* weight = a.weight + blockIdx.x * a.t;
    float before = 0.f, after = 0.f;
    if (a.restore_mean) {
        for (int i = threadIdx.x; i < a.t * a.c; i += blockDim.x) {
            const float v = to_float(x[size_t(i / a.c) * a.pitch + i % a.c]);
            before += v;
            after += v * weight[i / a.c];
        }
        __shared__ float sums[2][32];
        before = warp_sum(before), after = warp_sum(after);
        if (threadIdx.x % 32 == 0) sums[0][threadIdx.x / 32] = before, sums[1][threadIdx.x / 32] = after;
        __syncthreads();
        before = warp_sum(sums[0][threadIdx.x % 32]), after = warp_sum(sums[1][threadIdx.x % 32]);
    }
    const float restored = after != 0.f ? before / after : 1.f;
    for (int i = threadIdx.x; i < a.t * a.c; i += blockDim.x) {
        T& v = x[size_t(i / a.c) * a.pitch + i % a.c];
        v = from_float<T>(to_float(v) * (weight[i / a.c] * restored));
    }
}

// out[n,c] = [sin(t f) | cos(t f)] with f[i] = exp(-ln(10000) i / (c/2 - freq_shift))
template <typename T> __device__ void timestep_embedding(const TimestepEmbeddingArgs& a) {
    const size_t i = thread_index();
    if (i >= size_t(a.n) * a.c) return;
    const int row = i / a.c, c = i % a.c, half_c = a.c / 2;
    const float frequency = expf(-9.210340371976184f * float(c % half_c) / (half_c - a.freq_shift));
    const float angle = a.timesteps[row] * frequency;
    const bool cosine = (c < half_c) == (a.flip_sin_to_cos != 0);
    static_cast<T*>(a.out)[i] = from_float<T>(cosine ? cosf(angle) : sinf(angle));
}

// out[m,3] = round(clamp(x/2 + 1/2) * 255), halves to even; fmaxf turns a NaN into 0.
template <typename T> __device__ void to_rgb8(const ToRgb8Args& a) {
    const size_t i = thread_index();
    if (i >= size_t(a.m) * 3) return;
    const float x = to_float(static_cast<const T*>(a.x)[i / 3 * a.x_pitch + i % 3]);
    a.out[i] = static_cast<unsigned char>(rintf(fminf(fmaxf(x * 0.5f + 0.5f, 0.f), 1.f) * 255.f));
}

#define KERNEL(NAME, ARGS, SUFFIX, T)                                                                   \
    extern "C" __global__ void __launch_bounds__(256) NAME##_##SUFFIX(const __grid_constant__ ARGS a) { \
        after_previous_kernel();                                                                        \
        NAME<T>(a);                                                                                     \
    }
#define INSTANTIATE(SUFFIX, T)                                        \
    extern "C" __global__ void __launch_bounds__(1024)                \
        emphasize_##SUFFIX(const __grid_constant__ EmphasizeArgs a) { \
        after_previous_kernel();                                      \
        emphasize<T>(a);                                              \
    }                                                                 \
    KERNEL(activate, ActivateArgs, SUFFIX, T)                         \
    KERNEL(accumulate, AccumulateArgs, SUFFIX, T)                     \
    KERNEL(geglu, GegluArgs, SUFFIX, T)                               \
    KERNEL(scale, ScaleArgs, SUFFIX, T)                               \
    KERNEL(embed, EmbedArgs, SUFFIX, T)                               \
    KERNEL(timestep_embedding, TimestepEmbeddingArgs, SUFFIX, T)      \
    KERNEL(to_rgb8, ToRgb8Args, SUFFIX, T)

INSTANTIATE(f16, half)
INSTANTIATE(bf16, __nv_bfloat16)
INSTANTIATE(f32, float)
