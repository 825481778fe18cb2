// A planned network: steps on images that lie in one arena, run without returning to Python between them.
//
// The plan is a vector of 64-bit integers (hrnet_fast/runtime/cpu/program.py writes it): steps one after the other,
// each begun by its kind and its length. An address is a pair (base, byte offset); bases are the arena and then the
// tensors that the caller hands in, constants, images and results. Nothing in it is trusted: all steps are read before
// the first one runs, every number in its range, every address against the size and dtype of what it points into.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <string>
#include <vector>

#include "../checked.h"
#include "convolution.h"
#include "runtime.h"

namespace hrnet_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Region {
  char* data;
  int64_t bytes;
  ScalarType dtype;  // Byte: of any numbers
};

ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16: return ScalarType::BFloat16;
    case DType::kFloat16: return ScalarType::Half;
    default: return ScalarType::Float;
  }
}

class Reader {
 public:
  Reader(const int64_t* at, const int64_t* end, const std::vector<Region>& regions)
      : at_(at), end_(end), regions_(regions) {}
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
  char* address(int64_t count, DType dtype) {
    const int64_t itemsize = dtype == DType::kFloat32 ? 4 : 2, bytes = checked_product(count, itemsize);
    const int64_t base = next(-1, static_cast<int64_t>(regions_.size()) - 1), offset = next();
    if (base < 0) return nullptr;
    const Region& region = regions_[base];
    STD_TORCH_CHECK(offset >= 0 && bytes >= 0 && offset <= region.bytes - bytes, "run_program: ", bytes, " bytes at (",
                    base, ", ", offset, ") are outside of the tensors");
    STD_TORCH_CHECK(region.dtype == ScalarType::Byte || region.dtype == scalar_type(dtype), "run_program: tensor ",
                    base, " has another dtype than what is read or written there");
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(region.data + offset) % itemsize == 0, "run_program: (", base, ", ",
                    offset, ") is not aligned");
    return region.data + offset;
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
    p.channels = size(), p.image_stride = size();
    const int64_t image = checked_product(p.channels, h, w);
    STD_TORCH_CHECK(p.image_stride >= image, "run_program: images overlap");
    checked_product(n, p.image_stride);  // the kernels' own offsets stay below
    p.data = address(checked_sum(checked_product(n - 1, p.image_stride), image), p.dtype);
    return p;
  }

 private:
  const int64_t *at_, *end_;
  const std::vector<Region>& regions_;
};

Convolution read_convolution(Reader& in) {
  Convolution q;
  q.algorithm = static_cast<Algorithm>(in.next(0, kAlgorithms - 1));
  q.n = in.size(), q.h = in.size(), q.w = in.size(), q.c_out = in.size();
  q.kernel = static_cast<int>(in.next(1, kMaxKernel)), q.stride = static_cast<int>(in.next(1, 2));
  q.relu_from = in.next();
  q.sources = static_cast<int>(in.next(1, kMaxSources));
  const bool winograd = is_winograd(q.algorithm), pairs = has_pairs(q.algorithm);
  STD_TORCH_CHECK(q.kernel % 2 == 1 && (!winograd || (q.kernel == 3 && q.stride == 1 && q.sources == 1)) &&
                      (!pairs || multiplies_pairs()),
                  "run_program: a convolution that the kernels do not know");
  q.h_out = (q.h - 1) / q.stride + 1, q.w_out = (q.w - 1) / q.stride + 1;
  for (int s = 0; s < q.sources; ++s) {
    q.source[s] = in.planes(q.n, q.h, q.w);
    STD_TORCH_CHECK(!pairs || s + 1 == q.sources || q.source[s].channels % 2 == 0,
                    "run_program: pairs of channels of two images");
    q.c_in = checked_sum(q.c_in, q.source[s].channels);
  }
  q.output = in.planes(q.n, q.h_out, q.w_out);
  q.residual = in.planes(q.n, q.h_out, q.w_out);
  STD_TORCH_CHECK(q.output.channels == q.c_out && q.residual.channels == q.c_out && q.residual.dtype == q.output.dtype,
                  "run_program: a convolution's residual is not like its output");
  const int64_t weights = packed_weight_size(q.algorithm, q.c_out, q.c_in, q.kernel);
  q.weight = reinterpret_cast<const float*>(in.address(weights, DType::kFloat32));
  q.bias = reinterpret_cast<const float*>(in.address(q.c_out, DType::kFloat32));
  q.border = reinterpret_cast<const float*>(in.address(q.c_in, DType::kFloat32));
  STD_TORCH_CHECK(q.border == nullptr || q.algorithm == Algorithm::kDirect, "run_program: only zeros around the image");
  STD_TORCH_CHECK(q.weight != nullptr && q.bias != nullptr && q.output.data != nullptr, "run_program: data is missing");
  for (int s = 0; s < q.sources; ++s) STD_TORCH_CHECK(q.source[s].data != nullptr, "run_program: an input is missing");
  return q;
}

void convolutions_step(Reader& in, bool run) {
  const int count = static_cast<int>(in.next(1, kMaxConvolutions));
  Convolution convolutions[kMaxConvolutions];
  for (int i = 0; i < count; ++i) convolutions[i] = read_convolution(in);
  if (run) run_convolve(convolutions, count);
}

Image image_of(const Planes& p, DType dtype, int64_t n, int64_t h, int64_t w) {
  STD_TORCH_CHECK(p.dtype == dtype, "run_program: an exchange of images of different dtypes");
  return {p.data, n, p.channels, h, w, p.image_stride, h * w, w, 1};
}

Vector vector_of(Reader& in, int64_t size, DType dtype) {
  const void* data = in.address(size, dtype);
  return data == nullptr ? Vector{} : Vector{data, size, 1};
}

Matrix matrix_of(Reader& in, int64_t rows, int64_t cols, DType dtype) {
  const void* data = in.address(checked_product(rows, cols), dtype);
  return data == nullptr ? Matrix{} : Matrix{data, rows, cols, cols, 1};
}

void exchange_step(Reader& in, bool run) {
  Problem q;
  q.dtype = in.dtype();
  q.mode = static_cast<Mode>(in.next(0, 2));
  q.relu = in.next() != 0;
  const int64_t n = in.size(), h = in.size(), w = in.size();
  q.channels = in.size();
  q.count = static_cast<int>(in.next(1, kMaxInputs));
  for (int j = 0; j < q.count; ++j) {
    const int64_t height = in.next(1, h), width = in.next(1, w);
    const Planes x = in.planes(n, height, width);
    q.input[j] = image_of(x, q.dtype, n, height, width);
    q.weight[j] = matrix_of(in, q.channels, x.channels, q.dtype);
    STD_TORCH_CHECK(x.data != nullptr && (q.weight[j].data != nullptr || x.channels == q.channels),
                    "run_program: an input without a weight has other channels");
  }
  q.bias = vector_of(in, q.channels, q.dtype);
  const int64_t projected = in.next(0, INT64_MAX);
  q.projection = matrix_of(in, projected, q.channels, q.dtype);
  q.projection_bias = vector_of(in, projected, q.dtype);
  const Planes y = in.planes(n, h, w);
  STD_TORCH_CHECK(y.data != nullptr && y.channels == (q.projection.data ? projected : q.channels),
                  "run_program: an exchange's output has other channels");
  q.output = image_of(y, q.dtype, n, h, w);
  if (run) run_exchange(q);
}

Region region_of(const Tensor& t) {
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(t.is_cpu() && t.is_contiguous(), "run_program: tensors must be contiguous and on the CPU");
  STD_TORCH_CHECK(dtype == ScalarType::Byte || dtype == ScalarType::Float || dtype == ScalarType::BFloat16 ||
                      dtype == ScalarType::Half,
                  "run_program: expected tensors of float32, bfloat16, float16 or, of anything, uint8");
  const int64_t itemsize = static_cast<int64_t>(t.element_size());
  int64_t stored;  // a tensor outlives a storage that was resized
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &stored));
  const int64_t bytes = checked_product(t.numel(), itemsize);
  STD_TORCH_CHECK(checked_sum(checked_product(t.storage_offset(), itemsize), bytes) <= stored || bytes == 0,
                  "run_program: a tensor without memory");
  return {static_cast<char*>(const_cast<void*>(t.const_data_ptr())), bytes, dtype};
}

enum Step : int64_t { kConvolutions = 1, kExchange = 2 };

void read_steps(const int64_t* begin, const int64_t* end, const std::vector<Region>& regions, bool run) {
  while (begin != end) {
    STD_TORCH_CHECK(end - begin >= 2 && begin[1] >= 0 && begin[1] <= end - begin - 2, "run_program: a step is cut off");
    const int64_t *first = begin + 2, *last = first + begin[1];
    Reader step(first, last, regions);
    switch (*begin) {
      case kConvolutions: convolutions_step(step, run); break;
      case kExchange: exchange_step(step, run); break;
      default: STD_TORCH_CHECK(false, "run_program: unknown step ", *begin);
    }
    STD_TORCH_CHECK(step.done(), "run_program: a step is longer than what it says");
    begin = last;
  }
}

void run_program(Tensor program, Tensor arena, std::vector<Tensor> others) {
  STD_TORCH_CHECK(program.is_cpu() && program.scalar_type() == ScalarType::Long && program.is_contiguous(),
                  "run_program: expected a program of 64-bit integers");
  std::vector<Region> regions = {region_of(arena)};
  for (const Tensor& t : others) regions.push_back(region_of(t));
  const int64_t* words = static_cast<const int64_t*>(program.const_data_ptr());
  const std::vector<int64_t> copy(words, words + program.numel());  // the tensors may be the program itself
  for (const bool run : {false, true}) read_steps(copy.data(), copy.data() + copy.size(), regions, run);
}

// The size of a packed weight, of what the kernels know.
int64_t packed_convolution_size(int64_t algorithm, int64_t c_out, int64_t c_in, int64_t kernel) {
  STD_TORCH_CHECK(algorithm >= 0 && algorithm < kAlgorithms, "pack_convolution: unknown algorithm ", algorithm);
  const auto a = static_cast<Algorithm>(algorithm);
  STD_TORCH_CHECK(c_out >= 1 && c_in >= 1 && kernel >= 1 && kernel <= kMaxKernel && kernel % 2 == 1 &&
                      (!is_winograd(a) || kernel == 3),
                  "pack_convolution: the kernels know no convolution of weights [", c_out, ", ", c_in, ", ", kernel,
                  ", ", kernel, "]");
  return packed_weight_size(a, c_out, c_in, static_cast<int>(kernel));
}

void pack_convolution(Tensor weight, int64_t algorithm, Tensor packed) {
  STD_TORCH_CHECK(weight.dim() == 4 && weight.scalar_type() == ScalarType::Float && weight.is_contiguous() &&
                      packed.scalar_type() == ScalarType::Float && packed.is_contiguous() &&
                      weight.size(2) == weight.size(3) && weight.is_cpu() && packed.is_cpu(),
                  "pack_convolution: expected dense float32 weights [c_out, c_in, k, k]");
  const int64_t size = packed_convolution_size(algorithm, weight.size(0), weight.size(1), weight.size(2));
  STD_TORCH_CHECK(packed.numel() == size, "pack_convolution: expected room for ", size, " numbers");
  pack_weights(static_cast<Algorithm>(algorithm), static_cast<const float*>(weight.const_data_ptr()), weight.size(0),
               weight.size(1), static_cast<int>(weight.size(2)), static_cast<float*>(packed.mutable_data_ptr()));
}

int64_t cheapest_convolution(int64_t n, int64_t c_out, int64_t h, int64_t w, int64_t c_in, bool pairs, int64_t packed) {
  STD_TORCH_CHECK(n >= 1 && c_out >= 1 && h >= 1 && w >= 1 && c_in >= 1,
                  "cheapest_convolution: expected sizes of one or more");
  // what it computes with stays below, tiles and registers that reach over the border included
  constexpr int64_t kReach = 64;
  checked_product(n, checked_sum(h, kReach), checked_sum(w, kReach));
  checked_product(c_in, c_out);
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
