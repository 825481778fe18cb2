// Tensors as the plain data that the CPU kernels take.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "cpu/problem.h"

namespace hrnet_fast {

inline DType dtype_of(const torch::stable::Tensor& x) {
  using torch::headeronly::ScalarType;
  switch (x.scalar_type()) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kFloat16;
    default: STD_TORCH_CHECK(false, "hrnet_fast: expected float32, float64, bfloat16 or float16 tensors");
  }
}

inline Image image_of(const torch::stable::Tensor& x) {  // [N, C, H, W]
  return {x.const_data_ptr(), x.size(0),   x.size(1),   x.size(2),  x.size(3),
          x.stride(0),        x.stride(1), x.stride(2), x.stride(3)};
}

}  // namespace hrnet_fast
