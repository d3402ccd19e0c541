// What every kernel file needs: conversions, 16-byte vectors, activations, warp reductions.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "args.cuh"
#include "launch.cuh"

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ half from_float<half>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// Two halves in one 32-bit register, low element first.
__device__ __forceinline__ uint32_t pack2(half, float a, float b) {
    half2 v = __floats2half2_rn(a, b);
    return *reinterpret_cast<uint32_t*>(&v);
}
__device__ __forceinline__ uint32_t pack2(__nv_bfloat16, float a, float b) {
    __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<uint32_t*>(&v);
}

// The two again.
__device__ __forceinline__ float2 to_floats(half, uint32_t v) { return __half22float2(*reinterpret_cast<half2*>(&v)); }
__device__ __forceinline__ float2 to_floats(__nv_bfloat16, uint32_t v) {
    return __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&v));
}

// What instructions call an address in shared memory.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// N elements in one access (N * sizeof(T) is 4, 8 or 16 bytes).
template <typename T, int N> struct alignas(N * sizeof(T)) Vector {
    T v[N];
};

// Makes the compiler forget what it knows of 16 bytes: it converts them again where they are used next, instead
// of keeping what it converted before in twice as many registers.
template <typename T, int N> __device__ __forceinline__ void forget(Vector<T, N>& v) {
    static_assert(sizeof(v) == 16, "four registers");
    uint4& r = *reinterpret_cast<uint4*>(&v);
    asm volatile("" : "+r"(r.x), "+r"(r.y), "+r"(r.z), "+r"(r.w));
}

// Without the slow path of a division, which a denominator from 1 to infinity never takes, and of an exponential that is
// nothing beside 1.
__device__ __forceinline__ float silu(float x) {
    float e = -1.44269504f * x;
    asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(e));
    return __fdividef(x, 1.f + e);
}
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.f + erff(x * 0.70710678118654752f)); }
// The same for results that are rounded to halves, without a branch or a division: max(x, 0) - |x| Phi(-|x|), where the
// log2 of Phi is a polynomial (minimax to 5.5). Within 5e-6 of the result, or 5e-10; a NaN stays one.
__device__ __forceinline__ float gelu_of_half(float x) {
    const float z = fminf(fabsf(x), 6.5f);
    float phi = 3.30048729e-5f, positive;
    phi = fmaf(phi, z, -7.55483042e-4f);
    phi = fmaf(phi, z, 7.97549936e-3f);
    phi = fmaf(phi, z, -5.31235861e-2f);
    phi = fmaf(phi, z, -0.45910055f);
    phi = fmaf(phi, z, -1.15106152f);
    phi = fmaf(phi, z, -1.00000623f);
    asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(phi));
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(positive) : "f"(x));
    return fmaf(-z, phi, positive);
}
__device__ __forceinline__ float quick_gelu(float x) { return __fdividef(x, 1.f + __expf(-1.702f * x)); }

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}
