// One launch, with the error of this very launch: cudaGetLastError would tell those of others before it, too.
#pragma once

#include <cuda_runtime.h>

#include "geometry.h"

namespace hrnet_fast {
namespace cuda {

template <class Problem>
const char* start(void (*kernel)(Problem), const Grid& grid, Problem& problem, void* stream) {
  void* arguments[] = {&problem};
  const cudaError_t error = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), static_cast<unsigned>(grid.blocks),
                                             grid.threads, arguments, grid.shared, static_cast<cudaStream_t>(stream));
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // it has been reported: whoever looks next must not take it for his own
  return cudaGetErrorString(error);
}

}  // namespace cuda
}  // namespace hrnet_fast
