// BatchNorm and ReLU behind convolutions in training: schemas and kernels for the CPU.
#include <torch/csrc/stable/library.h>

#include "cpu/runtime.h"
#include "tensors.h"

namespace hrnet_fast {
namespace {

// What both directions say of x and its segments; relu holds a bit for each of them.
NormProblem norm_of(const Tensor& x, const std::vector<int64_t>& widths, int64_t relu, double eps, bool batch) {
  STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, "batch_norm: expected [N, C, H, W] that is not empty");
  NormProblem q;
  q.dtype = dtype_of(x);
  q.pixels = x.size(0) * x.size(2) * x.size(3), q.channels = x.size(1);
  q.eps = eps, q.batch = batch;
  q.x = read_from(x);
  STD_TORCH_CHECK(widths.size() <= kMaxInputs, "batch_norm: expected at most ", kMaxInputs, " segments");
  int64_t begin = 0;
  for (const int64_t width : widths) {
    STD_TORCH_CHECK(width >= 1, "batch_norm: expected segments of one channel or more, got ", width);
    q.segment[q.segments] = {begin, width, (relu >> q.segments & 1) != 0, nullptr, nullptr};
    ++q.segments, begin = checked_sum(begin, width);
  }
  STD_TORCH_CHECK(begin == q.channels, "batch_norm: segments of ", begin, " channels for ", q.channels);
  return q;
}

void check_dense(const Tensor& x, const Tensor& like, int64_t channels, const char* name) {
  STD_TORCH_CHECK(x.dim() == 4 && x.scalar_type() == like.scalar_type() && x.size(0) == like.size(0) &&
                      x.size(1) == channels && x.size(2) == like.size(2) && x.size(3) == like.size(3),
                  "batch_norm: ", name, " does not fit x");
  const int64_t steps[4] = {channels * x.size(2) * x.size(3), 1, channels * x.size(3), channels};
  for (int64_t d = 0; d < 4; ++d)
    STD_TORCH_CHECK(x.size(d) == 1 || x.stride(d) == steps[d], "batch_norm: ", name, " is not dense channels_last");
}

void* of_channels(const Tensor& t, const NormProblem& q, const char* name) {
  const ScalarType wide = q.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(
      t.dim() == 1 && t.size(0) == q.channels && (q.channels == 1 || t.stride(0) == 1) && t.scalar_type() == wide,
      "batch_norm: expected ", name, " of ", q.channels, " channels, dense, float32 or wider");
  return const_cast<void*>(read_from(t));
}

Tensor empty_channels(const Tensor& like) {
  return torch::stable::empty({like.size(1)},
                              like.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float,
                              torch::headeronly::Layout::Strided, like.device(), false);
}

// One tensor for each segment, then mean and biased variance of the batch, where they were not given.
std::vector<Tensor> batch_norm_cpu(Tensor x, Tensor weight, Tensor bias, std::optional<Tensor> mean,
                                   std::optional<Tensor> var, std::vector<int64_t> widths, int64_t relu, double eps) {
  NormProblem q = norm_of(x, widths, relu, eps, !mean);
  check_dense(x, x, q.channels, "x");
  STD_TORCH_CHECK(mean.has_value() == var.has_value(), "batch_norm: expected mean and variance, or none of them");
  q.weight = of_channels(weight, q, "weight"), q.bias = of_channels(bias, q, "bias");
  const Tensor used_mean = mean ? *mean : empty_channels(x), used_var = var ? *var : empty_channels(x);
  q.mean = of_channels(used_mean, q, "mean"), q.var = of_channels(used_var, q, "variance");
  std::vector<Tensor> results;
  for (int s = 0; s < q.segments; ++s) {
    results.push_back(empty_output(x, x.size(0), q.segment[s].width, x.size(2), x.size(3), true));
    q.segment[s].out = results.back().mutable_data_ptr();
  }
  run_norm(q, true);
  if (q.batch) {
    results.push_back(used_mean);
    results.push_back(used_var);
  }
  return results;
}

// The gradients of x, weight and bias.
std::vector<Tensor> batch_norm_backward_cpu(std::vector<Tensor> grads, Tensor x, Tensor weight, Tensor bias,
                                            Tensor mean, Tensor var, int64_t relu, double eps, bool batch) {
  std::vector<int64_t> widths;
  for (const Tensor& g : grads) widths.push_back(g.size(1));
  NormProblem q = norm_of(x, widths, relu, eps, batch);
  check_dense(x, x, q.channels, "x");
  for (int s = 0; s < q.segments; ++s) {
    check_dense(grads[s], x, q.segment[s].width, "a gradient");
    q.segment[s].grad = read_from(grads[s]);
  }
  q.weight = of_channels(weight, q, "weight"), q.bias = of_channels(bias, q, "bias");
  q.mean = of_channels(mean, q, "mean"), q.var = of_channels(var, q, "variance");
  const Tensor d_x = empty_output(x, x.size(0), x.size(1), x.size(2), x.size(3), true);
  const Tensor d_weight = empty_channels(x), d_bias = empty_channels(x);
  q.d_x = d_x.mutable_data_ptr(), q.d_weight = d_weight.mutable_data_ptr(), q.d_bias = d_bias.mutable_data_ptr();
  run_norm(q, false);
  return {d_x, d_weight, d_bias};
}

}  // namespace
}  // namespace hrnet_fast

STABLE_TORCH_LIBRARY_FRAGMENT(hrnet_fast, m) {
  m.def(
      "batch_norm(Tensor x, Tensor weight, Tensor bias, Tensor? mean, Tensor? var, int[] widths, int relu, float eps) "
      "-> Tensor[]");
  m.def(
      "batch_norm_backward(Tensor[] grads, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor var, int relu, "
      "float eps, bool batch) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(hrnet_fast, CPU, m) {
  m.impl("batch_norm", TORCH_BOX(hrnet_fast::batch_norm_cpu));
  m.impl("batch_norm_backward", TORCH_BOX(hrnet_fast::batch_norm_backward_cpu));
}
