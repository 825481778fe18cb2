// The CPU kernels as the rest of the extension sees them.
#pragma once

#include <string>

#include "convolution.h"
#include "problem.h"
#include "tiled.h"

namespace hrnet_fast {

// Runs on the best instruction set that this CPU has, or on that which HRNET_FAST_CPU_CAPABILITY names; throws
// std::runtime_error where that one is unknown or missing.
void run_exchange(const Problem& problem);
void run_backward(const BackwardProblem& problem);
void run_convolve(const Convolution* convolutions, int count);  // throws where why_not_convolve has a reason
const ConvolutionCosts& convolution_costs();  // of the kernels that run_convolve takes; throws like it
bool multiplies_pairs();  // whether there are kernels for the algorithms with pairs
const char* why_not_convolve();  // why this CPU has no kernels for planned convolutions, or null
bool multiplies_tiles();  // whether products of tiles are faster in bfloat16 than in float32
bool multiplies_bytes();  // whether there are instructions for what tiles do in bytes
// For programs with or without bytes; on the CPU's instructions, or on arrays.
const TiledKernels& tiled_kernels(bool bytes);
void run_norm(const NormProblem& problem, bool forward);
void run_argmax(const ArgmaxProblem& problem);
std::string cpu_capability();    // the one that run_exchange takes
std::string cpu_capabilities();  // all that this CPU has, best first, separated by blanks

}  // namespace hrnet_fast
