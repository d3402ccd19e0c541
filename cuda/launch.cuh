// How a kernel follows the one before.
#pragma once
#include "args.cuh"

// A thread calls this before it touches memory that another kernel writes. On Hopper a kernel's blocks may come in while
// those of the kernel before finish (programmatic dependent launch): what lies before this call overlaps. Blocks of the next
// kernel come in once all blocks of this one have been here or are done.
__device__ __forceinline__ void after_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;\n" ::: "memory");
#endif
}

// Brings this block's share of a weight into L2. Weights do not change: it need not wait for the kernel before.
__device__ __forceinline__ void read_soon(const Soon& soon) {
#if __CUDA_ARCH__ >= 900
    constexpr int PIECE = 4096;
    const int pieces = (soon.bytes + PIECE - 1) / PIECE, blocks = gridDim.x * gridDim.y * gridDim.z;
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    for (int piece = threadIdx.x * blocks + block; piece < pieces; piece += blockDim.x * blocks) {
        const int at = piece * PIECE;
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;\n" ::"l"(static_cast<const char*>(soon.weight) + at),
                     "r"(min(PIECE, soon.bytes - at)));
    }
#endif
}
