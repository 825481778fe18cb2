// Reads the words of a program and checks them: every number in its range, every address against the size and dtype of
// what it points into.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <vector>

#include "../memory.h"
#include "accesses.h"
#include "convolution.h"

namespace hrnet_fast {

using torch::headeronly::ScalarType;

struct Region {
  char* data;
  int64_t bytes;
  ScalarType dtype;  // Byte: of any numbers
};

inline ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16: return ScalarType::BFloat16;
    case DType::kFloat16: return ScalarType::Half;
    default: return ScalarType::Float;
  }
}

inline Blocks dense_blocks(const torch::stable::Tensor& t) {
  return {static_cast<const char*>(t.const_data_ptr()), t.numel() * static_cast<int64_t>(t.element_size())};
}

class Reader {
 public:
  Reader(const int64_t* at, const int64_t* end, const std::vector<Region>& regions, bool check_accesses)
      : at_(at), end_(end), regions_(regions), checks_accesses_(check_accesses) {}
  bool done() const { return at_ == end_; }
  int64_t next() {
    STD_TORCH_CHECK(at_ < end_, "run_program: the program ends in the middle of a step");
    return *at_++;
  }
  int64_t next(int64_t least, int64_t most) {
    const int64_t word = next();
    STD_TORCH_CHECK(word >= least && word <= most, "run_program: expected a number from ", least, " to ", most,
                    ", got ", word);
    return word;
  }
  int64_t size() { return next(1, INT64_MAX); }
  // `count` numbers that lie at an address; null where the base is -1.
  char* address(int64_t count, DType dtype, Use use = Use::kRead) {
    const int64_t itemsize = size_of(dtype);
    return used(place(count, itemsize, scalar_type(dtype)), itemsize, use, count);
  }
  uint8_t* bytes(int64_t count, Use use = Use::kRead) {
    return reinterpret_cast<uint8_t*>(used(place(count, 1, ScalarType::Byte), 1, use, count));
  }
  // Behind each of the operations that run at the same time; and behind all of them: none may write what others use.
  void end_operation() { accesses_.end_operation(); }
  void check_accesses() { accesses_.check(); }
  DType dtype() {
    const int64_t code = next();
    STD_TORCH_CHECK(code == 0 || code == 2 || code == 3, "run_program: unknown dtype ", code);
    return code == 0 ? DType::kFloat32 : code == 2 ? DType::kBFloat16 : DType::kFloat16;
  }
  // Images [n, channels, h, w] with dense planes: dtype, channels, elements from image to image, address.
  Planes planes(int64_t n, int64_t h, int64_t w, Use use = Use::kRead) {
    Planes p;
    p.dtype = dtype();
    p.channels = size(), p.image_stride = size();
    const int64_t image = checked_product(p.channels, h, w);
    STD_TORCH_CHECK(p.image_stride >= image, "run_program: images overlap");
    checked_product(n, p.image_stride);  // the kernels' own offsets stay below
    const int64_t itemsize = size_of(p.dtype);
    char* data = place(checked_sum(checked_product(n - 1, p.image_stride), image), itemsize, scalar_type(p.dtype));
    p.data = used(data, itemsize, use, image, n, p.image_stride);
    return p;
  }

 private:
  static int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }
  char* place(int64_t count, int64_t itemsize, ScalarType dtype) {
    const int64_t bytes = checked_product(count, itemsize);
    const int64_t base = next(-1, static_cast<int64_t>(regions_.size()) - 1), offset = next();
    if (base < 0) return nullptr;
    const Region& region = regions_[base];
    STD_TORCH_CHECK(offset >= 0 && bytes >= 0 && offset <= region.bytes - bytes, "run_program: ", bytes, " bytes at (",
                    base, ", ", offset, ") are outside of the tensors");
    STD_TORCH_CHECK(region.dtype == ScalarType::Byte || region.dtype == dtype, "run_program: tensor ", base,
                    " has another dtype than what is read or written there");
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(region.data + offset) % itemsize == 0, "run_program: (", base, ", ",
                    offset, ") is not aligned");
    return region.data + offset;
  }
  // `n` times `count` numbers, `stride` numbers from one to the next.
  char* used(char* data, int64_t itemsize, Use use, int64_t count, int64_t n = 1, int64_t stride = 0) {
    if (checks_accesses_ && data != nullptr)
      accesses_.add({data, count * itemsize, n == 1 ? 0 : stride * itemsize, n}, use);
    return data;
  }
  const int64_t *at_, *end_;
  const std::vector<Region>& regions_;
  Accesses accesses_;
  bool checks_accesses_;
};

}  // namespace hrnet_fast
