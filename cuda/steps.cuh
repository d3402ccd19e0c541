// The end of a step, one block: every image moves to its next table row, the host hears of it.
#pragma once
#include "args.cuh"
#include "launch.cuh"

// True while steps remain and nobody has cancelled; meaningful in thread 0.
__device__ __forceinline__ bool advance(const StepArgs& a) {
    for (int i = threadIdx.x; i < a.rows; i += blockDim.x) a.index[i] += 1;
    if (threadIdx.x != 0) return false;
    const int remaining = --a.counters[0];
    *a.done = ++a.counters[1];
    __threadfence_system();
    return remaining > 0 && *a.cancel == 0;
}
