// How a kernel follows the one before.
#pragma once

// A thread calls this before it touches memory that another kernel writes. On Hopper a kernel's blocks may come in while
// those of the kernel before finish (programmatic dependent launch): what lies before this call overlaps. Blocks of the next
// kernel come in once all blocks of this one have been here or are done.
__device__ __forceinline__ void after_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;\n" ::: "memory");
#endif
}
