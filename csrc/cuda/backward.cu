#include "gather.h"
#include "launch.h"
#include "start.h"

namespace hrnet_fast {
namespace cuda {
namespace {

template <class T>
const char* run(BackwardLaunch& launch, bool channels_last, void* stream) {
  const Grid grid = plan(launch, channels_last, sizeof(T));
  if (grid.blocks == 0) return nullptr;
  if (grid.blocks >= 1ll << 31) return kTooLarge;
  const auto begin = [&](auto kernel) { return start(kernel, grid, launch, stream); };
  constexpr int kWidest = 16 / sizeof(T);
  if (!channels_last) return begin(exchange_backward<T, 1, true>);
  if (launch.vector == 1) return begin(exchange_backward<T, 1, false>);
  if (launch.vector == 2) return begin(exchange_backward<T, 2, false>);
  if (launch.vector == 4) return begin(exchange_backward<T, 4, false>);
  return begin(exchange_backward<T, kWidest, false>);
}

}  // namespace

const char* run(BackwardLaunch& launch, DType dtype, bool channels_last, void* stream) {
  if (dtype == DType::kFloat16) return run<Float16>(launch, channels_last, stream);
  if (dtype == DType::kBFloat16) return run<BFloat16>(launch, channels_last, stream);
  return run<float>(launch, channels_last, stream);
}

}  // namespace cuda
}  // namespace hrnet_fast
