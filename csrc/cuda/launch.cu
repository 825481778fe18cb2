#include "launch.h"

#include "kernels.h"
#include "start.h"

namespace hrnet_fast {
namespace cuda {

const char* const kTooLarge = "the result is too large for one launch";

const char* why_not_loaded() {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, exchange_channels_last<Halves<Float16>>);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

const char* run(Launch& launch, DType dtype, bool channels_last, bool tf32, void* stream) {
  const Grid grid = plan(launch, channels_last, dtype == DType::kFloat32 ? 4 : 2);
  if (grid.blocks == 0) return nullptr;
  if (grid.blocks >= 1ll << 31) return kTooLarge;
  const auto begin = [&](auto kernel) { return start(kernel, grid, launch, stream); };
  if (dtype == DType::kFloat16)
    return channels_last ? begin(exchange_channels_last<Halves<Float16>>) : begin(exchange_planar<Float16>);
  if (dtype == DType::kBFloat16)
    return channels_last ? begin(exchange_channels_last<Halves<BFloat16>>) : begin(exchange_planar<BFloat16>);
  if (!channels_last) return begin(exchange_planar<float>);
  return tf32 ? begin(exchange_channels_last<Tf32>) : begin(exchange_channels_last<Ieee>);
}

}  // namespace cuda
}  // namespace hrnet_fast
