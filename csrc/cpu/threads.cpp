// torch's thread pool: all that the CPU kernels ask of torch.
#include <torch/csrc/stable/ops.h>

#include "problem.h"

namespace hrnet_fast {

void parallel_for(int64_t count, int64_t grain, Body body, void* context) {
  if (count <= 0) return;
  torch::stable::parallel_for(0, count, grain, [=](int64_t begin, int64_t end) { body(begin, end, context); });
}

int num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

}  // namespace hrnet_fast
