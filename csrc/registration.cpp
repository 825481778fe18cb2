// hrnet_fast._C: the operators' schemas and their kernels for the CPU, through the LibTorch stable ABI (torch >= 2.11).
//
// The public Python function checks its arguments with messages that name them; what is checked again here is what the
// kernels rely on, for callers that reach the operator directly.
#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "cpu/runtime.h"
#include "tensors.h"

namespace hrnet_fast {
namespace {

Matrix matrix_of(const Tensor& w, int64_t in) {
  STD_TORCH_CHECK((w.dim() == 2 || w.dim() == 4) && w.size(1) == in && w.numel() == w.size(0) * in,
                  "exchange: expected a 1x1 weight for ", in, " input channels");
  return {read_from(w), w.size(0), in, w.stride(0), w.stride(1)};
}

Vector vector_of(const std::optional<Tensor>& b, int64_t size) {
  if (!b) return {};
  STD_TORCH_CHECK(b->dim() == 1 && b->size(0) == size, "exchange: expected a bias of ", size, " elements");
  return {read_from(*b), size, b->stride(0)};
}

Mode mode_of(const std::string& mode, bool align_corners) {
  if (mode == "nearest") return Mode::kNearest;
  STD_TORCH_CHECK(mode == "bilinear", "exchange: expected mode 'bilinear' or 'nearest', got '", mode, "'");
  return align_corners ? Mode::kBilinearAlignCorners : Mode::kBilinear;
}

// One channel of zeros and its weight, in place of a sum without summands; eight bytes of zero in every dtype.
constexpr double kZero = 0;
Image zeros_like(const Image& x) { return {&kZero, x.n, 1, x.h, x.w, 0, 0, 0, 0}; }
Matrix zeros(int64_t rows) { return {&kZero, rows, 1, 0, 0}; }

Tensor exchange_cpu(std::vector<Tensor> inputs, std::vector<Tensor> weights, int64_t weighted,
                    std::optional<Tensor> bias, std::optional<Tensor> projection, std::optional<Tensor> projection_bias,
                    int64_t height, int64_t width, std::string mode, bool align_corners, bool relu, bool allow_tf32) {
  (void)allow_tf32;  // CPUs multiply in float32
  const size_t count = inputs.size();
  STD_TORCH_CHECK(count >= 1 && count <= kMaxInputs, "exchange: expected 1 to ", kMaxInputs, " inputs, got ", count);
  Problem q;
  q.count = static_cast<int>(count);
  q.dtype = dtype_of(inputs[0]);
  q.mode = mode_of(mode, align_corners);
  q.relu = relu;
  q.channels = weights.empty() ? inputs[0].size(1) : weights[0].size(0);

  size_t used = 0;
  const Tensor* format = nullptr;
  for (size_t j = 0; j < count; ++j) {
    const Tensor& x = inputs[j];
    STD_TORCH_CHECK(x.dim() == 4 && dtype_of(x) == q.dtype && x.size(0) == inputs[0].size(0), "exchange: inputs[", j,
                    "] is not [N, C, H, W] of the first one's dtype and batch");
    q.input[j] = image_of(x);
    STD_TORCH_CHECK(x.size(2) >= 1 && x.size(2) <= height && x.size(3) >= 1 && x.size(3) <= width, "exchange: inputs[",
                    j, "] is empty or larger than ", height, " x ", width);
    if (weighted >> j & 1) {
      STD_TORCH_CHECK(used < weights.size(), "exchange: fewer weights than `weighted` names");
      const Tensor& w = weights[used++];
      STD_TORCH_CHECK(dtype_of(w) == q.dtype && w.size(0) == q.channels, "exchange: a weight of inputs[", j,
                      "] that does not fit the others");
      q.weight[j] = matrix_of(w, x.size(1));
      if (x.size(1) == 0) q.input[j] = zeros_like(q.input[j]), q.weight[j] = zeros(q.channels);
    } else {
      STD_TORCH_CHECK(x.size(1) == q.channels, "exchange: inputs[", j, "] has no weight and other channels");
    }
    if (format == nullptr && x.size(2) == height && x.size(3) == width) format = &x;
  }
  STD_TORCH_CHECK(used == weights.size(), "exchange: more weights than `weighted` names");
  for (const std::optional<Tensor>* t : {&bias, &projection, &projection_bias})
    STD_TORCH_CHECK(!*t || dtype_of(**t) == q.dtype, "exchange: bias and projection must have the inputs' dtype");
  q.bias = vector_of(bias, q.channels);
  if (projection) {
    q.projection = matrix_of(*projection, q.channels);
    q.projection_bias = vector_of(projection_bias, q.projection.rows);
    if (q.channels == 0) {
      q.input[0] = zeros_like(q.input[0]), q.weight[0] = {}, q.bias = {};
      q.projection = zeros(q.projection.rows), q.count = 1, q.channels = 1;
    }
  }

  q.channels_last = is_channels_last(format ? *format : inputs[0]);
  const int64_t out_channels = projection ? q.projection.rows : q.channels;
  Tensor out = empty_output(inputs[0], inputs[0].size(0), out_channels, height, width, q.channels_last);
  q.output = image_of(out);
  if (out.numel() > 0) run_exchange(q);
  return out;
}

// The gradients of inputs without weights, one for each (height, width) in `sizes`, and with `same` that of inputs of
// the output's own size behind them.
std::vector<Tensor> exchange_backward_cpu(Tensor grad, std::optional<Tensor> output, std::vector<int64_t> sizes,
                                          std::string mode, bool align_corners, bool same) {
  STD_TORCH_CHECK(grad.dim() == 4, "exchange_backward: expected a gradient [N, C, H, W]");
  STD_TORCH_CHECK(sizes.size() % 2 == 0 && sizes.size() <= 2 * kMaxInputs, "exchange_backward: expected at most ",
                  kMaxInputs, " pairs of sizes, got ", sizes.size(), " numbers");
  BackwardProblem q;
  q.dtype = dtype_of(grad);
  q.mode = mode_of(mode, align_corners);
  q.n = grad.size(0), q.c = grad.size(1), q.h = grad.size(2), q.w = grad.size(3);
  STD_TORCH_CHECK(!output || (output->dim() == 4 && output->size(0) == q.n && output->size(1) == q.c &&
                              output->size(2) == q.h && output->size(3) == q.w && dtype_of(*output) == q.dtype),
                  "exchange_backward: gradient and output must be of one shape and dtype");
  // The kernel walks through both at once, as the output lies in memory. A gradient comes with any strides.
  q.channels_last = is_channels_last(output ? *output : grad);
  const auto layout =
      q.channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous;
  check_memory(grad);
  grad = torch::stable::contiguous(grad, layout);
  if (output) check_memory(*output), output = torch::stable::contiguous(*output, layout);
  std::vector<Tensor> results;
  for (size_t j = 0; 2 * j < sizes.size(); ++j) {
    const int64_t h = sizes[2 * j], w = sizes[2 * j + 1];
    STD_TORCH_CHECK(h >= 1 && h <= q.h && w >= 1 && w <= q.w, "exchange_backward: ", h, " x ", w,
                    " is empty or larger than ", q.h, " x ", q.w);
    results.push_back(empty_output(grad, q.n, q.c, h, w, q.channels_last));
    q.low[q.count++] = {results.back().mutable_data_ptr(), h, w};
  }
  q.grad = grad.const_data_ptr();
  if (output) q.output = output->const_data_ptr();
  if (same) {
    STD_TORCH_CHECK(output,
                    "exchange_backward: without a ReLU the gradient of same-size inputs is the gradient itself");
    results.push_back(empty_output(grad, q.n, q.c, q.h, q.w, q.channels_last));
    q.same = results.back().mutable_data_ptr();
  }
  if (grad.numel() > 0) run_backward(q);
  return results;
}

}  // namespace
}  // namespace hrnet_fast

#define HRNET_FAST_SCHEMA                                                                                         \
  "(Tensor[] inputs, Tensor[] weights, int weighted, Tensor? bias, Tensor? projection, Tensor? projection_bias, " \
  "SymInt height, SymInt width, str mode, bool align_corners, bool relu, bool allow_tf32) -> Tensor"

#define HRNET_FAST_BACKWARD_SCHEMA \
  "(Tensor grad, Tensor? output, SymInt[] sizes, str mode, bool align_corners, bool same) -> Tensor[]"

STABLE_TORCH_LIBRARY(hrnet_fast, m) {
  m.def("exchange" HRNET_FAST_SCHEMA);
  m.def("exchange_fwd" HRNET_FAST_SCHEMA);
  m.def("exchange_backward" HRNET_FAST_BACKWARD_SCHEMA);
  m.def("exchange_backward_fwd" HRNET_FAST_BACKWARD_SCHEMA);
  m.def("cpu_capability() -> str");
  m.def("cpu_capabilities() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(hrnet_fast, CPU, m) {
  m.impl("exchange", TORCH_BOX(hrnet_fast::exchange_cpu));
  m.impl("exchange_fwd", TORCH_BOX(hrnet_fast::exchange_cpu));
  m.impl("exchange_backward", TORCH_BOX(hrnet_fast::exchange_backward_cpu));
  m.impl("exchange_backward_fwd", TORCH_BOX(hrnet_fast::exchange_backward_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(hrnet_fast, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(hrnet_fast::cpu_capability));
  m.impl("cpu_capabilities", TORCH_BOX(hrnet_fast::cpu_capabilities));
}

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", "hrnet_fast's compiled operators", -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
