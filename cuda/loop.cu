// step_while ends a step inside the conditional WHILE node of the denoising graph and decides whether
// another follows. In a file of its own: drivers before 12.4 cannot load it.
#include "steps.cuh"

extern "C" __global__ void step_while(const __grid_constant__ StepArgs a) {
    after_previous_kernel();
    const bool more = advance(a);
    if (threadIdx.x == 0) cudaGraphSetConditional(a.condition, more ? 1 : 0);
}
