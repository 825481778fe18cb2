#include "launch.h"

#include <cuda_runtime.h>

#include "kernels.h"

namespace hrnet_fast {
namespace cuda {

const char* run(Launch& launch, DType dtype, bool channels_last, bool tf32, void* stream) {
  const Grid grid = plan(launch, channels_last, dtype == DType::kFloat32 ? 4 : 2);
  if (grid.blocks == 0) return nullptr;
  if (grid.blocks >= 1ll << 31) return "the result is too large for one launch";
  const auto start = [&](auto kernel) {
    kernel<<<static_cast<unsigned>(grid.blocks), grid.threads, grid.shared, static_cast<cudaStream_t>(stream)>>>(
        launch);
  };
  if (dtype == DType::kFloat16)
    channels_last ? start(exchange_channels_last<Halves<Float16>>) : start(exchange_planar<Float16>);
  else if (dtype == DType::kBFloat16)
    channels_last ? start(exchange_channels_last<Halves<BFloat16>>) : start(exchange_planar<BFloat16>);
  else if (!channels_last)
    start(exchange_planar<float>);
  else if (tf32)
    start(exchange_channels_last<Tf32>);
  else
    start(exchange_channels_last<Ieee>);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace cuda
}  // namespace hrnet_fast
