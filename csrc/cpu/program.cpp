// A planned network: steps on images that lie in one arena, run without returning to Python between them.
//
// The plan is a vector of 64-bit integers (hrnet_fast/runtime/cpu/program.py writes it): steps one after the other,
// each begun by its kind and its length. An address is a pair (base, byte offset); bases are the arena and then the
// tensors that the caller hands in, constants, images and results. Every address is checked against the size of what it
// points into before a step runs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <string>
#include <vector>

#include "convolution.h"
#include "runtime.h"

namespace hrnet_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Region {
  char* data;
  int64_t bytes;
};

int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

class Reader {
 public:
  Reader(const int64_t* at, const int64_t* end, const std::vector<Region>& regions)
      : at_(at), end_(end), regions_(regions) {}
  bool done() const { return at_ == end_; }
  int64_t next() {
    STD_TORCH_CHECK(at_ < end_, "run_program: the program ends in the middle of a step");
    return *at_++;
  }
  // `bytes` that lie at an address; null where the base is -1.
  char* address(int64_t bytes) {
    const int64_t base = next(), offset = next();
    if (base < 0) return nullptr;
    STD_TORCH_CHECK(base < static_cast<int64_t>(regions_.size()) && offset >= 0 && bytes >= 0 &&
                        offset <= regions_[base].bytes - bytes,
                    "run_program: ", bytes, " bytes at (", base, ", ", offset, ") are outside of the tensors");
    return regions_[base].data + offset;
  }
  DType dtype() {
    const int64_t code = next();
    STD_TORCH_CHECK(code == 0 || code == 2 || code == 3, "run_program: unknown dtype ", code);
    return code == 0 ? DType::kFloat32 : code == 2 ? DType::kBFloat16 : DType::kFloat16;
  }
  // Images [n, channels, h, w] with dense planes: dtype, channels, elements from image to image, address.
  Planes planes(int64_t n, int64_t h, int64_t w) {
    Planes p;
    p.dtype = dtype();
    p.channels = next(), p.image_stride = next();
    STD_TORCH_CHECK(p.channels > 0 && p.image_stride >= p.channels * h * w, "run_program: images overlap");
    p.data = address(((n - 1) * p.image_stride + p.channels * h * w) * element_size(p.dtype));
    return p;
  }

 private:
  const int64_t *at_, *end_;
  const std::vector<Region>& regions_;
};

Convolution read_convolution(Reader& in) {
  Convolution q;
  const int64_t algorithm = in.next();
  q.algorithm = static_cast<Algorithm>(algorithm);
  q.n = in.next(), q.h = in.next(), q.w = in.next(), q.c_out = in.next();
  q.kernel = static_cast<int>(in.next()), q.stride = static_cast<int>(in.next());
  q.relu_from = in.next();
  q.sources = static_cast<int>(in.next());
  const bool winograd = is_winograd(q.algorithm), pairs = has_pairs(q.algorithm);
  STD_TORCH_CHECK(q.n > 0 && q.h > 0 && q.w > 0 && q.c_out > 0 && q.kernel % 2 == 1 && q.kernel > 0 && q.kernel < 16 &&
                      (q.stride == 1 || q.stride == 2) && q.sources >= 1 && q.sources <= kMaxSources &&
                      algorithm >= 0 && algorithm < kAlgorithms &&
                      (!winograd || (q.kernel == 3 && q.stride == 1 && q.sources == 1)) &&
                      (!pairs || multiplies_pairs()),
                  "run_program: a convolution that the kernels do not know");
  q.h_out = (q.h - 1) / q.stride + 1, q.w_out = (q.w - 1) / q.stride + 1;
  for (int s = 0; s < q.sources; ++s) {
    q.source[s] = in.planes(q.n, q.h, q.w);
    STD_TORCH_CHECK(!pairs || s + 1 == q.sources || q.source[s].channels % 2 == 0,
                    "run_program: pairs of channels of two images");
    q.c_in += q.source[s].channels;
  }
  q.output = in.planes(q.n, q.h_out, q.w_out);
  q.residual = in.planes(q.n, q.h_out, q.w_out);
  STD_TORCH_CHECK(q.output.channels == q.c_out && q.residual.channels == q.c_out && q.residual.dtype == q.output.dtype,
                  "run_program: a convolution's residual is not like its output");
  const int64_t weights = packed_weight_size(q.algorithm, q.c_out, q.c_in, q.kernel);
  q.weight = reinterpret_cast<const float*>(in.address(weights * static_cast<int64_t>(sizeof(float))));
  q.bias = reinterpret_cast<const float*>(in.address(q.c_out * static_cast<int64_t>(sizeof(float))));
  q.border = reinterpret_cast<const float*>(in.address(q.c_in * static_cast<int64_t>(sizeof(float))));
  STD_TORCH_CHECK(q.border == nullptr || q.algorithm == Algorithm::kDirect, "run_program: only zeros around the image");
  STD_TORCH_CHECK(q.weight != nullptr && q.bias != nullptr && q.output.data != nullptr, "run_program: data is missing");
  for (int s = 0; s < q.sources; ++s) STD_TORCH_CHECK(q.source[s].data != nullptr, "run_program: an input is missing");
  return q;
}

void run_convolutions(Reader& in) {
  const int64_t count = in.next();
  STD_TORCH_CHECK(count >= 1 && count <= kMaxConvolutions, "run_program: ", count, " convolutions in a step");
  Convolution convolutions[kMaxConvolutions];
  for (int64_t i = 0; i < count; ++i) convolutions[i] = read_convolution(in);
  run_convolve(convolutions, static_cast<int>(count));
}

Image image_of(const Planes& p, DType dtype, int64_t n, int64_t h, int64_t w) {
  STD_TORCH_CHECK(p.dtype == dtype, "run_program: an exchange of images of different dtypes");
  return {p.data, n, p.channels, h, w, p.image_stride, h * w, w, 1};
}

Vector vector_of(Reader& in, int64_t size, int64_t itemsize) {
  const void* data = in.address(size * itemsize);
  return data == nullptr ? Vector{} : Vector{data, size, 1};
}

Matrix matrix_of(Reader& in, int64_t rows, int64_t cols, int64_t itemsize) {
  const void* data = in.address(rows * cols * itemsize);
  return data == nullptr ? Matrix{} : Matrix{data, rows, cols, cols, 1};
}

void run_exchange_step(Reader& in) {
  Problem q;
  q.dtype = in.dtype();
  q.mode = static_cast<Mode>(in.next());
  STD_TORCH_CHECK(q.mode == Mode::kNearest || q.mode == Mode::kBilinear || q.mode == Mode::kBilinearAlignCorners,
                  "run_program: unknown mode");
  q.relu = in.next() != 0;
  const int64_t n = in.next(), h = in.next(), w = in.next(), itemsize = element_size(q.dtype);
  q.channels = in.next();
  q.count = static_cast<int>(in.next());
  STD_TORCH_CHECK(n > 0 && h > 0 && w > 0 && q.channels > 0 && q.count >= 1 && q.count <= kMaxInputs,
                  "run_program: an exchange that the kernels do not know");
  for (int j = 0; j < q.count; ++j) {
    const int64_t height = in.next(), width = in.next();
    STD_TORCH_CHECK(height > 0 && height <= h && width > 0 && width <= w,
                    "run_program: an input is larger than the sum");
    const Planes x = in.planes(n, height, width);
    q.input[j] = image_of(x, q.dtype, n, height, width);
    q.weight[j] = matrix_of(in, q.channels, x.channels, itemsize);
    STD_TORCH_CHECK(x.data != nullptr && (q.weight[j].data != nullptr || x.channels == q.channels),
                    "run_program: an input without a weight has other channels");
  }
  q.bias = vector_of(in, q.channels, itemsize);
  const int64_t projected = in.next();
  STD_TORCH_CHECK(projected >= 0, "run_program: a negative number of channels");
  q.projection = matrix_of(in, projected, q.channels, itemsize);
  q.projection_bias = vector_of(in, projected, itemsize);
  const Planes y = in.planes(n, h, w);
  STD_TORCH_CHECK(y.data != nullptr && y.channels == (q.projection.data ? projected : q.channels),
                  "run_program: an exchange's output has other channels");
  q.output = image_of(y, q.dtype, n, h, w);
  run_exchange(q);
}

Region region_of(const Tensor& t) {
  int64_t elements = 1;
  for (int64_t d = 0; d < t.dim(); ++d) elements *= t.size(d);
  STD_TORCH_CHECK(t.is_contiguous() && t.is_cpu(), "run_program: tensors must be contiguous and on the CPU");
  const int64_t size = t.scalar_type() == ScalarType::Byte ? 1 : t.scalar_type() == ScalarType::Float ? 4 : 2;
  return {static_cast<char*>(const_cast<void*>(t.const_data_ptr())), elements * size};
}

enum Step : int64_t { kConvolutions = 1, kExchange = 2 };

void run_program(Tensor program, Tensor arena, std::vector<Tensor> others) {
  STD_TORCH_CHECK(program.scalar_type() == ScalarType::Long && program.is_contiguous(),
                  "run_program: expected a program of 64-bit integers");
  std::vector<Region> regions = {region_of(arena)};
  for (const Tensor& t : others) regions.push_back(region_of(t));
  const int64_t* begin = static_cast<const int64_t*>(program.const_data_ptr());
  const int64_t* end = begin + program.numel();
  while (begin != end) {
    STD_TORCH_CHECK(end - begin >= 2 && begin[1] >= 0 && begin[1] <= end - begin - 2, "run_program: a step is cut off");
    Reader step(begin + 2, begin + 2 + begin[1], regions);
    switch (begin[0]) {
      case kConvolutions: run_convolutions(step); break;
      case kExchange: run_exchange_step(step); break;
      default: STD_TORCH_CHECK(false, "run_program: unknown step ", begin[0]);
    }
    STD_TORCH_CHECK(step.done(), "run_program: a step is longer than what it says");
    begin += 2 + begin[1];
  }
}

void pack_convolution(Tensor weight, int64_t algorithm, Tensor packed) {
  const auto a = static_cast<Algorithm>(algorithm);
  STD_TORCH_CHECK(weight.dim() == 4 && weight.scalar_type() == ScalarType::Float && weight.is_contiguous() &&
                      packed.scalar_type() == ScalarType::Float && packed.is_contiguous() &&
                      weight.size(2) == weight.size(3) && algorithm >= 0 && algorithm < kAlgorithms &&
                      (!is_winograd(a) || weight.size(2) == 3),
                  "pack_convolution: expected dense float32 weights [c_out, c_in, k, k]");
  const int64_t size = packed_weight_size(a, weight.size(0), weight.size(1), static_cast<int>(weight.size(2)));
  STD_TORCH_CHECK(packed.numel() == size, "pack_convolution: expected room for ", size, " numbers");
  pack_weights(a, static_cast<const float*>(weight.const_data_ptr()), weight.size(0), weight.size(1),
               static_cast<int>(weight.size(2)), static_cast<float*>(packed.mutable_data_ptr()));
}

int64_t packed_convolution_size(int64_t algorithm, int64_t c_out, int64_t c_in, int64_t kernel) {
  return packed_weight_size(static_cast<Algorithm>(algorithm), c_out, c_in, static_cast<int>(kernel));
}

int64_t cheapest_convolution(int64_t n, int64_t c_out, int64_t h, int64_t w, int64_t c_in, bool pairs, int64_t packed) {
  return static_cast<int64_t>(cheapest(convolution_costs(), n, c_out, h, w, c_in, pairs, packed));
}

bool has_bfloat16_pairs() { return multiplies_pairs(); }

std::string why_not_program() { return why_not_convolve() == nullptr ? "" : why_not_convolve(); }

}  // namespace
}  // namespace hrnet_fast

STABLE_TORCH_LIBRARY_FRAGMENT(hrnet_fast, m) {
  m.def("run_program(Tensor program, Tensor(a!) arena, Tensor(b!)[] others) -> ()");
  m.def("pack_convolution(Tensor weight, int algorithm, Tensor(a!) packed) -> ()");
  m.def("packed_convolution_size(int algorithm, int c_out, int c_in, int kernel) -> int");
  m.def("cheapest_convolution(int n, int c_out, int h, int w, int c_in, bool pairs, int packed) -> int");
  m.def("why_not_program() -> str");
  m.def("has_bfloat16_pairs() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(hrnet_fast, CPU, m) {
  m.impl("run_program", TORCH_BOX(hrnet_fast::run_program));
  m.impl("pack_convolution", TORCH_BOX(hrnet_fast::pack_convolution));
}

STABLE_TORCH_LIBRARY_IMPL(hrnet_fast, CompositeExplicitAutograd, m) {
  m.impl("packed_convolution_size", TORCH_BOX(hrnet_fast::packed_convolution_size));
  m.impl("cheapest_convolution", TORCH_BOX(hrnet_fast::cheapest_convolution));
  m.impl("has_bfloat16_pairs", TORCH_BOX(hrnet_fast::has_bfloat16_pairs));
  m.impl("why_not_program", TORCH_BOX(hrnet_fast::why_not_program));
}
