// step_advance ends a step that the host launches one by one (drivers before 12.4, profiling).
#include "steps.cuh"

extern "C" __global__ void step_advance(const __grid_constant__ StepArgs a) { after_previous_kernel(); advance(a); }
