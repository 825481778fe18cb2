// A planned network: steps on images that lie in one arena, run without returning to Python between them.
//
// The plan is a vector of 64-bit integers (hrnet_fast/runtime/cpu/encode.py writes it): steps one after the other,
// each begun by its kind and its length. An address is a pair (base, byte offset); bases are the arena and then the
// tensors that the caller hands in, constants, images and results. Nothing in it is trusted: all steps are read before
// the first one runs, every number in its range, every address against the size and dtype of what it points into.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <chrono>
#include <string>
#include <vector>

#include "program_reader.h"
#include "runtime.h"
#include "tiled_program.h"

namespace hrnet_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Convolution read_convolution(Reader& in) {
  Convolution q;
  q.algorithm = static_cast<Algorithm>(in.next(0, kAlgorithms - 1));
  q.packed = static_cast<Algorithm>(in.next(0, kAlgorithms - 1));
  q.n = in.size(), q.h = in.size(), q.w = in.size(), q.c_out = in.size();
  q.kernel = static_cast<int>(in.next(1, kMaxKernel)), q.stride = static_cast<int>(in.next(1, 2));
  q.relu_from = in.next();
  q.sources = static_cast<int>(in.next(1, kMaxSources));
  const bool winograd = is_winograd(q.algorithm), pairs = has_pairs(q.algorithm);
  STD_TORCH_CHECK(q.kernel % 2 == 1 && (!winograd || (q.kernel == 3 && q.stride == 1 && q.sources == 1)) &&
                      (!pairs || multiplies_pairs()) && reads_weights_of(q.algorithm, q.packed),
                  "run_program: a convolution that the kernels do not know");
  q.h_out = (q.h - 1) / q.stride + 1, q.w_out = (q.w - 1) / q.stride + 1;
  for (int s = 0; s < q.sources; ++s) {
    q.source[s] = in.planes(q.n, q.h, q.w);
    STD_TORCH_CHECK(!pairs || s + 1 == q.sources || q.source[s].channels % 2 == 0,
                    "run_program: pairs of channels of two images");
    q.c_in = checked_sum(q.c_in, q.source[s].channels);
  }
  q.output = in.planes(q.n, q.h_out, q.w_out, Use::kWritten);
  q.residual = in.planes(q.n, q.h_out, q.w_out, Use::kReadAndReplaced);
  STD_TORCH_CHECK(q.output.channels == q.c_out && q.residual.channels == q.c_out && q.residual.dtype == q.output.dtype,
                  "run_program: a convolution's residual is not like its output");
  const int64_t weights = packed_weight_size(q.packed, q.c_out, q.c_in, q.kernel);
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
  for (int i = 0; i < count; ++i) convolutions[i] = read_convolution(in), in.end_operation();
  in.check_accesses();
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
  const Planes y = in.planes(n, h, w, Use::kWritten);
  STD_TORCH_CHECK(y.data != nullptr && y.channels == (q.projection.data ? projected : q.channels),
                  "run_program: an exchange's output has other channels");
  q.output = image_of(y, q.dtype, n, h, w);
  in.check_accesses();
  if (run) run_exchange(q);
}

Region region_of(const Tensor& t) {
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(t.is_cpu() && t.is_contiguous(), "run_program: tensors must be contiguous and on the CPU");
  STD_TORCH_CHECK(dtype == ScalarType::Byte || dtype == ScalarType::Float || dtype == ScalarType::BFloat16 ||
                      dtype == ScalarType::Half,
                  "run_program: expected tensors of float32, bfloat16, float16 or, of anything, uint8");
  const int64_t itemsize = static_cast<int64_t>(t.element_size());
  return {static_cast<char*>(write_to(t)), checked_product(t.numel(), itemsize), dtype};
}

enum Step : int64_t { kConvolutions = 1, kExchange, kTiled };

int64_t operations(const int64_t* step) { return *step == kTiled ? step[2] : 1; }

// What each operation took is written to nanoseconds, where that is not null: the time that threads spent on it, for a
// step that is one operation the time until its end.
void read_steps(const std::vector<int64_t>& words, const std::vector<Region>& regions, bool run,
                int64_t* nanoseconds = nullptr) {
  const int64_t *begin = words.data(), *end = begin + words.size();
  while (begin != end) {
    STD_TORCH_CHECK(end - begin >= 2 && begin[1] >= 0 && begin[1] <= end - begin - 2, "run_program: a step is cut off");
    const int64_t *first = begin + 2, *last = first + begin[1];
    Reader step(first, last, regions, !run);
    const auto start = std::chrono::steady_clock::now();
    switch (*begin) {
      case kConvolutions: convolutions_step(step, run); break;
      case kExchange: exchange_step(step, run); break;
      case kTiled: tiled_step(step, run, nanoseconds); break;
      default: STD_TORCH_CHECK(false, "run_program: unknown step ", *begin);
    }
    STD_TORCH_CHECK(step.done(), "run_program: a step is longer than what it says");
    if (nanoseconds != nullptr) {
      if (*begin != kTiled) *nanoseconds = (std::chrono::steady_clock::now() - start) / std::chrono::nanoseconds(1);
      nanoseconds += operations(begin);
    }
    begin = last;
  }
}

int64_t count_operations(const std::vector<int64_t>& words) {  // of a program that has been read
  int64_t count = 0;
  for (size_t at = 0; at < words.size(); at += 2 + static_cast<size_t>(words[at + 1])) count += operations(&words[at]);
  return count;
}

void run_timed(const Tensor& program, const Tensor& arena, const std::vector<Tensor>& others, const Tensor* times) {
  STD_TORCH_CHECK(program.is_cpu() && program.scalar_type() == ScalarType::Long && program.is_contiguous(),
                  "run_program: expected a program of 64-bit integers");
  std::vector<Region> regions = {region_of(arena)};
  for (const Tensor& t : others) regions.push_back(region_of(t));
  const int64_t* begin = static_cast<const int64_t*>(read_from(program));
  const std::vector<int64_t> words(begin, begin + program.numel());  // the tensors may be the program itself
  read_steps(words, regions, false);
  int64_t* nanoseconds = nullptr;
  if (times != nullptr) {
    STD_TORCH_CHECK(times->is_cpu() && times->is_contiguous() && times->scalar_type() == ScalarType::Long &&
                        times->numel() == count_operations(words),
                    "time_program: expected a 64-bit integer for each operation");
    nanoseconds = static_cast<int64_t*>(write_to(*times));
    for (const Region& region : regions) check_apart(dense_blocks(*times), {region.data, region.bytes});
  }
  read_steps(words, regions, true, nanoseconds);
}

void run_program(Tensor program, Tensor arena, std::vector<Tensor> others) {
  run_timed(program, arena, others, nullptr);
}

void time_program(Tensor program, Tensor arena, std::vector<Tensor> others, Tensor nanoseconds) {
  run_timed(program, arena, others, &nanoseconds);
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
  const auto* from = static_cast<const float*>(read_from(weight));
  auto* to = static_cast<float*>(write_to(packed));
  check_apart(dense_blocks(packed), dense_blocks(weight));
  pack_weights(static_cast<Algorithm>(algorithm), from, weight.size(0), weight.size(1),
               static_cast<int>(weight.size(2)), to);
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
  m.def("time_program(Tensor program, Tensor(a!) arena, Tensor(b!)[] others, Tensor(c!) nanoseconds) -> ()");
  m.def("pack_convolution(Tensor weight, int algorithm, Tensor(a!) packed) -> ()");
  m.def("packed_convolution_size(int algorithm, int c_out, int c_in, int kernel) -> int");
  m.def("cheapest_convolution(int n, int c_out, int h, int w, int c_in, bool pairs, int packed) -> int");
  m.def("why_not_program() -> str");
  m.def("has_bfloat16_pairs() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(hrnet_fast, CPU, m) {
  m.impl("run_program", TORCH_BOX(hrnet_fast::run_program));
  m.impl("time_program", TORCH_BOX(hrnet_fast::time_program));
  m.impl("pack_convolution", TORCH_BOX(hrnet_fast::pack_convolution));
}

STABLE_TORCH_LIBRARY_IMPL(hrnet_fast, CompositeExplicitAutograd, m) {
  m.impl("packed_convolution_size", TORCH_BOX(hrnet_fast::packed_convolution_size));
  m.impl("cheapest_convolution", TORCH_BOX(hrnet_fast::cheapest_convolution));
  m.impl("has_bfloat16_pairs", TORCH_BOX(hrnet_fast::has_bfloat16_pairs));
  m.impl("why_not_program", TORCH_BOX(hrnet_fast::why_not_program));
}
