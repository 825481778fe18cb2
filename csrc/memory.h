// Where the numbers of a caller's tensors lie. A tensor outlives its storage, which may have been resized or freed.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "checked.h"

namespace hrnet_fast {

inline void check_memory(const torch::stable::Tensor& t) {
  const auto sizes = t.sizes(), strides = t.strides();
  int64_t elements = t.storage_offset() + 1;  // from the storage's first to the tensor's last
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) return;
    elements = checked_sum(elements, checked_product(sizes[d] - 1, strides[d]));
  }
  int64_t stored;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &stored));
  STD_TORCH_CHECK(checked_product(elements, static_cast<int64_t>(t.element_size())) <= stored,
                  "hrnet_fast: a tensor without memory: its storage was resized");
}

inline const void* read_from(const torch::stable::Tensor& t) {
  check_memory(t);
  return t.const_data_ptr();
}

inline void* write_to(const torch::stable::Tensor& t) {
  check_memory(t);
  return t.mutable_data_ptr();
}

}  // namespace hrnet_fast
