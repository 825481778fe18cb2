#include <cuda_runtime.h>

#include "gather.h"
#include "launch.h"

namespace hrnet_fast {
namespace cuda {
namespace {

template <class T>
const char* run(BackwardLaunch& launch, bool channels_last, void* stream) {
  const Grid grid = plan(launch, channels_last, sizeof(T));
  if (grid.blocks == 0) return nullptr;
  if (grid.blocks >= 1ll << 31) return "the gradient is too large for one launch";
  const auto start = [&](auto kernel) {
    kernel<<<static_cast<unsigned>(grid.blocks), grid.threads, 0, static_cast<cudaStream_t>(stream)>>>(launch);
  };
  constexpr int kWidest = 16 / sizeof(T);
  if (!channels_last)
    start(exchange_backward<T, 1, true>);
  else if (launch.vector == 1)
    start(exchange_backward<T, 1, false>);
  else if (launch.vector == 2)
    start(exchange_backward<T, 2, false>);
  else if (launch.vector == 4)
    start(exchange_backward<T, 4, false>);
  else
    start(exchange_backward<T, kWidest, false>);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* run(BackwardLaunch& launch, DType dtype, bool channels_last, void* stream) {
  if (dtype == DType::kFloat16) return run<Float16>(launch, channels_last, stream);
  if (dtype == DType::kBFloat16) return run<BFloat16>(launch, channels_last, stream);
  return run<float>(launch, channels_last, stream);
}

}  // namespace cuda
}  // namespace hrnet_fast
