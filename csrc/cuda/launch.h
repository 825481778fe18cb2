// How the kernels are launched, for code that knows torch and not CUDA.
#pragma once

#include "problem.h"

namespace hrnet_fast {
namespace cuda {

// Why the driver cannot load the kernels on the current GPU (it is too old, or they are compiled for others), or null.
const char* why_not_loaded();

// What both functions below return for work that no grid can hold.
extern const char* const kTooLarge;

// Launches a kernel for outputs whose pointers, sizes and counts are set. Returns null, or what went wrong.
const char* run(Launch& launch, DType dtype, bool channels_last, bool tf32, void* stream);

// The same for the backward: pointers, sizes and the count of targets are set.
const char* run(BackwardLaunch& launch, DType dtype, bool channels_last, void* stream);

}  // namespace cuda
}  // namespace hrnet_fast
