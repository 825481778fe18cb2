// hrnet_fast::interpolate_argmax: schema and kernel for the CPU. The public Python function checks its arguments with
// messages that name them; what is checked again here is what the kernel relies on.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <vector>

#include "cpu/runtime.h"
#include "tensors.h"

namespace hrnet_fast {
namespace {

Label label_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte: return Label::kUInt8;
    case ScalarType::Int: return Label::kInt32;
    case ScalarType::Long: return Label::kInt64;
    default: STD_TORCH_CHECK(false, "interpolate_argmax: expected a result of uint8, int32 or int64");
  }
}

Tensor interpolate_argmax_cpu(Tensor scores, int64_t height, int64_t width, bool align_corners, ScalarType dtype) {
  constexpr int64_t kMaxClasses = int64_t{1} << 24;  // classes are counted in floating point
  STD_TORCH_CHECK(scores.dim() == 4 && scores.size(1) >= 1 && scores.size(1) <= kMaxClasses && scores.size(2) >= 1 &&
                      scores.size(3) >= 1 && height >= 1 && width >= 1,
                  "interpolate_argmax: expected scores [N, C, H, W] and a size, none of them empty");
  ArgmaxProblem q;
  q.label = label_of(dtype);
  STD_TORCH_CHECK(q.label != Label::kUInt8 || scores.size(1) <= 256, "interpolate_argmax: uint8 cannot name ",
                  scores.size(1), " classes");
  q.scores = image_of(scores);
  q.dtype = dtype_of(scores);
  q.mode = align_corners ? Mode::kBilinearAlignCorners : Mode::kBilinear;
  q.h = height, q.w = width;
  const std::vector<int64_t> sizes = {scores.size(0), height, width};
  Tensor out = torch::stable::empty(sizes, dtype, torch::headeronly::Layout::Strided, scores.device());
  q.out = out.mutable_data_ptr();
  if (out.numel() > 0) run_argmax(q);
  return out;
}

}  // namespace
}  // namespace hrnet_fast

STABLE_TORCH_LIBRARY_FRAGMENT(hrnet_fast, m) {
  m.def(
      "interpolate_argmax(Tensor scores, SymInt height, SymInt width, bool align_corners, ScalarType dtype) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(hrnet_fast, CPU, m) {
  m.impl("interpolate_argmax", TORCH_BOX(hrnet_fast::interpolate_argmax_cpu));
}
