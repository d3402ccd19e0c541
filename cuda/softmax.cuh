// What attention kernels need for their softmax.
#pragma once
#include "common.cuh"

// 2^x within 2 ulp; denormal results flush to zero, 2^-inf is 0.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

// exp(x) = 2^(x log2 e)
constexpr float LOG2_E = 1.4426950408889634f;

// Over the four lanes that share a row of sums, of a warp's product as of a warpgroup's.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
