// What one instruction set has: functions for the problems of problem.h, convolution.h and tiled.h. Each file for an
// instruction set fills such a table; instruction_sets.cpp names them.
#pragma once

#include "convolution.h"
#include "problem.h"
#include "tiled.h"

namespace hrnet_fast {

// A null: what another table has serves (instruction_sets.h). Each function serves every dtype and layout.
struct Kernels {
  void (*exchange)(const Problem& problem) = nullptr;
  void (*backward)(const BackwardProblem& problem) = nullptr;
  void (*norm)(const NormProblem& problem, bool forward) = nullptr;
  void (*argmax)(const ArgmaxProblem& problem) = nullptr;
  // Convolutions that do not depend on each other, shared out among the threads together.
  void (*convolve)(const Convolution* convolutions, int count) = nullptr;
  bool pairs = false;  // whether convolve has the algorithms with pairs
  const ConvolutionCosts* costs = nullptr;
  const TiledKernels* tiled = nullptr;  // the bits of their results are the same on all instruction sets
  // The same for programs of bfloat16 alone, where that is faster than float32; the bits may be others.
  const TiledKernels* tiled_bfloat16 = nullptr;
};

}  // namespace hrnet_fast
