// What the operators for the CPU ask of tensors, and tensors as the plain data that the kernels take.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <vector>

#include "cpu/problem.h"
#include "memory.h"

namespace hrnet_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kFloat16;
    default: STD_TORCH_CHECK(false, "hrnet_fast: expected float32, float64, bfloat16 or float16 tensors");
  }
}

inline Image image_of(const Tensor& x) {  // [N, C, H, W]
  return {read_from(x), x.size(0), x.size(1), x.size(2), x.size(3), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

inline Tensor empty_output(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w, bool channels_last) {
  const std::vector<int64_t> sizes = {n, c, h, w};
  return torch::stable::empty(
      sizes, like.scalar_type(), torch::headeronly::Layout::Strided, like.device(), false,
      channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous);
}

// Whether channels are innermost: the rule of hrnet_fast.ops.exchange.call.is_channels_last.
inline bool is_channels_last(const Tensor& x) { return x.stride(1) == 1 && x.stride(3) != 1; }

}  // namespace hrnet_fast
