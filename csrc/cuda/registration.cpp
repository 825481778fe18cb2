// hrnet_fast._C_cuda: the CUDA kernels as operators, through the LibTorch stable ABI (torch >= 2.11). Their schemas are
// defined in hrnet_fast/ops/backends/cuda.py, which checks what the kernels rely on.
#include <Python.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "../memory.h"
#include "launch.h"

// The symbol is in libtorch_cuda; its declaration is for sources compiled with CUDA's headers.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace hrnet_fast {
namespace cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kFloat16;
    default: STD_TORCH_CHECK(false, "exchange: expected float32, bfloat16 or float16 tensors on a GPU");
  }
}

Mode mode_of(const std::string& mode, bool align_corners) {
  if (mode == "nearest") return Mode::kNearest;
  STD_TORCH_CHECK(mode == "bilinear", "exchange: expected mode 'bilinear' or 'nearest', got '", mode, "'");
  return align_corners ? Mode::kBilinearAlignCorners : Mode::kBilinear;
}

// Sizes are compared with this; what lies in memory must fit in 32-bit coordinates.
int checked(int64_t size) {
  STD_TORCH_CHECK(size >= 0 && size < 1ll << 31, "exchange: a size of ", size, " is too large for the CUDA kernels");
  return static_cast<int>(size);
}

void* current_stream(int32_t device) {
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == 0, "exchange: there is no CUDA stream");
  return stream;
}

void check_dense(const Tensor& x, bool channels_last, const char* name, size_t index) {
  int64_t expected = 1;
  const int order_last[4] = {1, 3, 2, 0}, order[4] = {3, 2, 1, 0};
  for (const int d : channels_last ? order_last : order) {
    STD_TORCH_CHECK(x.size(d) <= 1 || x.stride(d) == expected || x.numel() == 0, "exchange: ", name, "[", index,
                    "] is not dense in the launch's memory format");
    expected *= x.size(d);
  }
}

// One launch for up to kMaxOutputs sums. Output i takes counts[i] of `inputs`; bit j of weighted[i] says that its j-th
// input takes the next one of `weights`, [channels, k], and biased[i] that the output takes the next one of `biases`.
std::vector<Tensor> exchange_sums(std::vector<Tensor> inputs, std::vector<int64_t> counts, std::vector<Tensor> weights,
                                  std::vector<int64_t> weighted, std::vector<Tensor> biases,
                                  std::vector<int64_t> biased, std::vector<int64_t> sizes, bool channels_last,
                                  std::string mode, bool align_corners, bool relu, bool allow_tf32) {
  STD_TORCH_CHECK(counts.size() >= 1 && counts.size() <= kMaxOutputs && weighted.size() == counts.size() &&
                      biased.size() == counts.size() && sizes.size() == 2 * counts.size() && !inputs.empty(),
                  "exchange: expected 1 to ", kMaxOutputs, " outputs, and as many counts, weights and sizes");
  const Tensor& first = inputs[0];
  const DType dtype = dtype_of(first);
  Launch launch = {};
  launch.mode = mode_of(mode, align_corners);
  launch.relu = relu;
  std::vector<Tensor> outputs;
  size_t input = 0, weight = 0, bias = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    Output q = {};
    q.h = checked(sizes[2 * i]), q.w = checked(sizes[2 * i + 1]);
    STD_TORCH_CHECK(counts[i] >= 1 && counts[i] <= kMaxInputs && input + counts[i] <= inputs.size(),
                    "exchange: output ", i, " has no or too many inputs");
    const bool through = weighted[i] & 1;
    STD_TORCH_CHECK(!through || weight < weights.size(), "exchange: output ", i, " has fewer weights than it names");
    q.n = checked(inputs[input].size(0));
    q.channels = checked(through ? weights[weight].size(0) : inputs[input].size(1));
    for (int64_t j = 0; j < counts[i]; ++j, ++input) {
      const Tensor& x = inputs[input];
      STD_TORCH_CHECK(x.dim() == 4 && x.is_cuda() && x.get_device() == first.get_device() && dtype_of(x) == dtype &&
                          x.size(0) == q.n,
                      "exchange: inputs[", input, "] is not [N, C, H, W] of the first one's device, dtype and batch");
      check_dense(x, channels_last, "inputs", input);
      Input& in = q.input[q.count++];
      in.data = read_from(x);
      in.k = checked(x.size(1)), in.h = checked(x.size(2)), in.w = checked(x.size(3));
      checked(x.size(2) * x.size(3));
      STD_TORCH_CHECK(in.h >= 1 && in.w >= 1 && in.h <= q.h && in.w <= q.w, "exchange: inputs[", input,
                      "] is empty or larger than ", q.h, " x ", q.w);
      if (weighted[i] >> j & 1) {
        STD_TORCH_CHECK(channels_last && weight < weights.size(),
                        "exchange: a weight is missing, or channels are not innermost");
        const Tensor& w = weights[weight++];
        STD_TORCH_CHECK(w.dim() == 2 && dtype_of(w) == dtype && w.get_device() == first.get_device() &&
                            w.size(0) == q.channels && w.size(1) == in.k && w.is_contiguous(),
                        "exchange: expected a dense weight [", q.channels, ", ", in.k, "] for inputs[", input, "]");
        in.weight = read_from(w);
      } else {
        STD_TORCH_CHECK(in.k == q.channels, "exchange: inputs[", input, "] has ", in.k, " channels, not ", q.channels);
      }
    }
    if (biased[i]) {
      STD_TORCH_CHECK(bias < biases.size(), "exchange: a bias is missing");
      const Tensor& b = biases[bias++];
      STD_TORCH_CHECK(b.dim() == 1 && b.size(0) == q.channels && dtype_of(b) == dtype && b.is_contiguous() &&
                          b.get_device() == first.get_device(),
                      "exchange: expected a dense bias of ", q.channels, " elements");
      q.bias = read_from(b);
    }
    const std::vector<int64_t> shape = {q.n, q.channels, q.h, q.w};
    outputs.push_back(torch::stable::empty(
        shape, first.scalar_type(), torch::headeronly::Layout::Strided, first.device(), false,
        channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous));
    q.data = outputs.back().mutable_data_ptr();
    if (outputs.back().numel() > 0) launch.output[launch.count++] = q;
  }
  if (launch.count == 0) return outputs;
  const torch::stable::accelerator::DeviceGuard guard(first.get_device());
  const char* error = run(launch, dtype, channels_last, allow_tf32, current_stream(first.get_device()));
  STD_TORCH_CHECK(error != kTooLarge, "exchange: ", kTooLarge);
  STD_TORCH_CHECK(error == nullptr, "the kernel exchange_", channels_last ? "channels_last" : "planar",
                  " failed to launch: ", error);
  return outputs;
}

// The gradients of inputs without weights, one for each (height, width) in `sizes`, in one launch. One of the output's
// own size gets the gradient behind the ReLU.
std::vector<Tensor> exchange_backward_sums(Tensor grad, std::optional<Tensor> output, std::vector<int64_t> sizes,
                                           bool channels_last, std::string mode, bool align_corners) {
  STD_TORCH_CHECK(grad.dim() == 4 && grad.is_cuda() && sizes.size() % 2 == 0 && sizes.size() <= 2 * (kMaxInputs + 1),
                  "exchange_backward: expected a gradient [N, C, H, W] and at most ", kMaxInputs + 1, " sizes");
  const DType dtype = dtype_of(grad);
  check_dense(grad, channels_last, "gradient", 0);
  BackwardLaunch launch = {};
  launch.mode = mode_of(mode, align_corners);
  launch.n = checked(grad.size(0)), launch.channels = checked(grad.size(1));
  launch.h = checked(grad.size(2)), launch.w = checked(grad.size(3));
  launch.grad = read_from(grad);
  if (output) {
    check_dense(*output, channels_last, "output", 0);
    STD_TORCH_CHECK(output->dim() == 4 && output->numel() == grad.numel() && output->size(1) == grad.size(1) &&
                        output->size(2) == grad.size(2) && dtype_of(*output) == dtype &&
                        output->get_device() == grad.get_device(),
                    "exchange_backward: gradient and output must be of one shape, dtype and device");
    launch.output = read_from(*output);
  }
  std::vector<Tensor> results;
  for (size_t j = 0; 2 * j < sizes.size(); ++j) {
    Target t = {};
    t.h = checked(sizes[2 * j]), t.w = checked(sizes[2 * j + 1]);
    STD_TORCH_CHECK(t.h >= 1 && t.h <= launch.h && t.w >= 1 && t.w <= launch.w, "exchange_backward: ", t.h, " x ", t.w,
                    " is empty or larger than ", launch.h, " x ", launch.w);
    const std::vector<int64_t> shape = {launch.n, launch.channels, t.h, t.w};
    results.push_back(torch::stable::empty(
        shape, grad.scalar_type(), torch::headeronly::Layout::Strided, grad.device(), false,
        channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous));
    t.data = results.back().mutable_data_ptr();
    launch.target[launch.count++] = t;
  }
  if (grad.numel() == 0 || results.empty()) return results;
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device());
  const char* error = run(launch, dtype, channels_last, current_stream(grad.get_device()));
  STD_TORCH_CHECK(error != kTooLarge, "exchange_backward: ", kTooLarge);
  STD_TORCH_CHECK(error == nullptr, "the kernel exchange_backward failed to launch: ", error);
  return results;
}

// Why the kernels cannot be loaded on a GPU, -1: the current one; empty where they can.
std::string cuda_kernels_error(int64_t device) {
  std::optional<torch::stable::accelerator::DeviceGuard> guard;
  if (device >= 0) guard.emplace(static_cast<torch::stable::accelerator::DeviceIndex>(device));
  const char* error = why_not_loaded();
  return error == nullptr ? "" : error;
}

}  // namespace
}  // namespace cuda
}  // namespace hrnet_fast

STABLE_TORCH_LIBRARY_IMPL(hrnet_fast, CUDA, m) {
  m.impl("exchange_sums", TORCH_BOX(hrnet_fast::cuda::exchange_sums));
  m.impl("exchange_backward_sums", TORCH_BOX(hrnet_fast::cuda::exchange_backward_sums));
}

STABLE_TORCH_LIBRARY_IMPL(hrnet_fast, CompositeExplicitAutograd, m) {
  m.impl("cuda_kernels_error", TORCH_BOX(hrnet_fast::cuda::cuda_kernels_error));
}

PyMODINIT_FUNC PyInit__C_cuda() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C_cuda", "hrnet_fast's CUDA kernels", -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
