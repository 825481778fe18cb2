// Exchange, its backward, batch normalization and class maps against loops in float64.
#include <algorithm>

#include "support.h"

namespace hrnet_fast {
namespace {

// A tensor [n, c, h, w] in one of the two dense layouts, and its values.
struct Tensor {
  int64_t n, c, h, w;
  bool channels_last;
  Numbers numbers;
  Tensor() = default;
  Tensor(DType dtype, int64_t n_, int64_t c_, int64_t h_, int64_t w_, bool last)
      : n(n_), c(c_), h(h_), w(w_), channels_last(last), numbers(dtype, n_ * c_ * h_ * w_) {}
  int64_t at(int64_t i, int64_t k, int64_t y, int64_t x) const {
    return channels_last ? ((i * h + y) * w + x) * c + k : ((i * c + k) * h + y) * w + x;
  }
  double operator()(int64_t i, int64_t k, int64_t y, int64_t x) const { return numbers[at(i, k, y, x)]; }
  void fill(Random& random) {
    for (int64_t i = 0; i < numbers.count(); ++i) numbers.set(i, random.normal());
  }
  Image image() const {
    if (channels_last) return {numbers.data(), n, c, h, w, h * w * c, 1, w * c, c};
    return {numbers.data(), n, c, h, w, c * h * w, h * w, w, 1};
  }
  template <class F>
  void each(F f) const {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < c; ++k)
        for (int64_t y = 0; y < h; ++y)
          for (int64_t x = 0; x < w; ++x) f(i, k, y, x);
  }
};

std::string shape_of(const Tensor& t) {
  return "[" + std::to_string(t.n) + ", " + std::to_string(t.c) + ", " + std::to_string(t.h) + ", " +
         std::to_string(t.w) + "] dtype " + std::to_string(static_cast<int>(t.numbers.dtype()));
}

Mode any_mode(Random& random) { return static_cast<Mode>(random.between(0, 2)); }

// A size no larger: the same, an exact fraction, or any.
int64_t smaller(Random& random, int64_t size) {
  const int64_t shift = random.between(1, 3);
  return random.chance(0.6) && size >> shift > 0 && size >> shift << shift == size ? size >> shift
                                                                                   : random.between(1, size);
}

double interpolated(const std::vector<double>& plane, int64_t h, int64_t w, const From& fy, const From& fx) {
  const auto at = [&](int64_t y, int64_t x) { return plane[static_cast<size_t>(y * w + x)]; };
  (void)h;
  return fy.w0 * (fx.w0 * at(fy.i0, fx.i0) + fx.w1 * at(fy.i0, fx.i1)) +
         fy.w1 * (fx.w0 * at(fy.i1, fx.i0) + fx.w1 * at(fy.i1, fx.i1));
}

}  // namespace

void test_exchange(const InstructionSet& set, Random& random) {
  const DType dtype = random.dtype(true);
  Problem q;
  q.dtype = dtype, q.mode = any_mode(random), q.relu = random.chance(0.7), q.channels_last = random.chance(0.6);
  q.channels = random.channels(50);
  q.count = static_cast<int>(random.between(1, 4));
  const int64_t n = random.between(1, 2), h = random.between(1, 24),
                w = random.one_of({random.between(1, 40), int64_t{16}});
  std::vector<Tensor> inputs;
  std::vector<Numbers> weights;
  const bool ladder = random.chance(0.4) && w % 8 == 0 && h % 8 == 0;  // an exchange unit's
  std::vector<double> sum(static_cast<size_t>(n * q.channels * h * w));
  const auto result = [&](int64_t i, int64_t k, int64_t y, int64_t x) -> double& {
    return sum[static_cast<size_t>(((i * q.channels + k) * h + y) * w + x)];
  };
  for (int j = 0; j < q.count; ++j) {
    const bool same = ladder ? j == 0 : random.chance(0.4), weighted = ladder ? j > 0 : random.chance(0.6);
    const int64_t height = same ? h : ladder ? h >> j : smaller(random, h);
    const int64_t width = same ? w : ladder ? w >> j : smaller(random, w);
    const int64_t c = weighted ? random.channels(50) : q.channels;
    inputs.emplace_back(dtype, n, c, height, width, random.chance(0.8) ? q.channels_last : !q.channels_last);
    inputs.back().fill(random);
    weights.emplace_back(dtype, weighted ? q.channels * c : 0, random, 0.3);
  }
  for (int j = 0; j < q.count; ++j) {
    const Tensor& x = inputs[static_cast<size_t>(j)];
    const Numbers& weight = weights[static_cast<size_t>(j)];
    const bool weighted = weight.count() > 0;
    q.input[j] = x.image();
    if (weighted) q.weight[j] = {weight.data(), q.channels, x.c, x.c, 1};
    std::vector<double> plane(static_cast<size_t>(x.h * x.w));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < q.channels; ++k) {
        for (int64_t p = 0; p < x.h * x.w; ++p) {
          double value = weighted ? 0 : x(i, k, p / x.w, p % x.w);
          for (int64_t c = 0; weighted && c < x.c; ++c) value += weight[k * x.c + c] * x(i, c, p / x.w, p % x.w);
          plane[static_cast<size_t>(p)] = value;
        }
        for (int64_t y = 0; y < h; ++y)
          for (int64_t o = 0; o < w; ++o)
            result(i, k, y, o) += interpolated(plane, x.h, x.w, from_of(q.mode, y, x.h, h), from_of(q.mode, o, x.w, w));
      }
  }
  const Numbers bias(dtype, random.chance(0.6) ? q.channels : 0, random);
  if (bias.count() > 0) q.bias = {bias.data(), q.channels, 1};
  const int64_t projected = random.chance(0.3) ? random.channels(40) : 0;
  const Numbers projection(dtype, projected * q.channels, random, 0.3), projection_bias(dtype, projected, random);
  if (projected > 0) {
    q.projection = {projection.data(), projected, q.channels, q.channels, 1};
    q.projection_bias = {projection_bias.data(), projected, 1};
  }
  Tensor out(dtype, n, projected > 0 ? projected : q.channels, h, w, q.channels_last);
  q.output = out.image();
  set.with(&Kernels::exchange)->exchange(q);

  std::vector<double> expected(static_cast<size_t>(out.numbers.count()));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t y = 0; y < h; ++y)
      for (int64_t x = 0; x < w; ++x) {
        for (int64_t k = 0; k < q.channels; ++k) {
          double& value = result(i, k, y, x);
          value += bias.count() > 0 ? bias[k] : 0;
          if (q.relu) value = std::max(value, 0.0);
        }
        for (int64_t k = 0; k < out.c; ++k) {
          double value = projected > 0 ? projection_bias[k] : result(i, k, y, x);
          for (int64_t c = 0; projected > 0 && c < q.channels; ++c)
            value += projection[k * q.channels + c] * result(i, c, y, x);
          expected[static_cast<size_t>(out.at(i, k, y, x))] = value;
        }
      }
  check_close(out.numbers, expected, shape_of(out) + ", inputs " + std::to_string(q.count));
}

void test_backward(const InstructionSet& set, Random& random) {
  const DType dtype = random.dtype(true);
  const bool last = random.chance(0.5), relu = random.chance(0.7);
  Tensor grad(dtype, random.between(1, 2), random.channels(50), random.between(1, 24), random.between(1, 24), last);
  Tensor output = grad, same = grad;
  grad.fill(random), output.fill(random);
  BackwardProblem q;
  q.dtype = dtype, q.mode = any_mode(random), q.channels_last = last;
  q.n = grad.n, q.c = grad.c, q.h = grad.h, q.w = grad.w;
  q.grad = grad.numbers.data();
  if (relu) q.output = output.numbers.data(), q.same = same.numbers.data();
  q.count = static_cast<int>(random.between(1, 3));
  std::vector<Tensor> low;
  for (int j = 0; j < q.count; ++j) low.emplace_back(dtype, q.n, q.c, smaller(random, q.h), smaller(random, q.w), last);
  for (int j = 0; j < q.count; ++j) {
    Tensor& x = low[static_cast<size_t>(j)];
    q.low[j] = {x.numbers.data(), x.h, x.w};
  }
  set.with(&Kernels::backward)->backward(q);

  std::vector<double> masked(static_cast<size_t>(grad.numbers.count()));
  for (int64_t i = 0; i < grad.numbers.count(); ++i)
    masked[static_cast<size_t>(i)] = relu && output.numbers[i] <= 0 ? 0 : grad.numbers[i];
  if (relu) check_close(same.numbers, masked, "same, of " + shape_of(grad));
  for (const Tensor& x : low) {
    std::vector<double> expected(static_cast<size_t>(x.numbers.count()));
    grad.each([&](int64_t i, int64_t k, int64_t y, int64_t o) {
      const From fy = from_of(q.mode, y, x.h, q.h), fx = from_of(q.mode, o, x.w, q.w);
      const double g = masked[static_cast<size_t>(grad.at(i, k, y, o))];
      expected[static_cast<size_t>(x.at(i, k, fy.i0, fx.i0))] += g * fy.w0 * fx.w0;
      expected[static_cast<size_t>(x.at(i, k, fy.i0, fx.i1))] += g * fy.w0 * fx.w1;
      expected[static_cast<size_t>(x.at(i, k, fy.i1, fx.i0))] += g * fy.w1 * fx.w0;
      expected[static_cast<size_t>(x.at(i, k, fy.i1, fx.i1))] += g * fy.w1 * fx.w1;
    });
    check_close(x.numbers, expected, shape_of(x) + " of " + shape_of(grad));
  }
}

void test_argmax(const InstructionSet& set, Random& random) {
  const DType dtype = random.dtype(true);
  Tensor scores(dtype, random.between(1, 2), random.channels(40), random.between(1, 16), random.between(1, 16),
                random.chance(0.5));
  scores.fill(random);
  ArgmaxProblem q;
  q.scores = scores.image(), q.dtype = dtype, q.label = Label::kInt32;
  q.mode = random.one_of({Mode::kBilinear, Mode::kBilinearAlignCorners});
  const bool copied = random.chance(0.2);
  q.h = copied ? scores.h : random.between(1, 40), q.w = copied ? scores.w : random.between(1, 60);
  Numbers labels(DType::kFloat32, scores.n * q.h * q.w);  // of the integers' size
  q.out = labels.data();
  set.with(&Kernels::argmax)->argmax(q);
  labels.check_guards("labels");
  std::vector<double> plane(static_cast<size_t>(scores.h * scores.w));
  std::vector<double> best(static_cast<size_t>(labels.count()), -INFINITY), chosen(best.size());
  for (int64_t i = 0; i < scores.n; ++i)
    for (int64_t k = 0; k < scores.c; ++k) {
      for (int64_t p = 0; p < scores.h * scores.w; ++p)
        plane[static_cast<size_t>(p)] = scores(i, k, p / scores.w, p % scores.w);
      for (int64_t y = 0; y < q.h; ++y)
        for (int64_t x = 0; x < q.w; ++x) {
          const int64_t at = (i * q.h + y) * q.w + x;
          const double value = interpolated(plane, scores.h, scores.w, from_of(q.mode, y, scores.h, q.h),
                                            from_of(q.mode, x, scores.w, q.w));
          best[static_cast<size_t>(at)] = std::max(best[static_cast<size_t>(at)], value);
          if (labels.as<int32_t>(at) == k) chosen[static_cast<size_t>(at)] = value;
        }
    }
  for (int64_t at = 0; at < labels.count(); ++at)  // the accumulator's rounding may decide between equal ones
    if (labels.as<int32_t>(at) < 0 || labels.as<int32_t>(at) >= scores.c ||
        chosen[static_cast<size_t>(at)] < best[static_cast<size_t>(at)] - 1e-5)
      throw Failure(shape_of(scores) + ": pixel " + std::to_string(at) + " of another class");
}

void test_norm(const InstructionSet& set, Random& random) {
  const DType dtype = random.dtype(true), wide = dtype == DType::kFloat64 ? dtype : DType::kFloat32;
  NormProblem q;
  q.dtype = dtype, q.eps = 1e-3, q.batch = random.chance(0.7);
  q.pixels = random.between(8, 400);
  q.segments = static_cast<int>(random.between(1, 3));
  std::vector<Numbers> outs, grads;
  for (int s = 0; s < q.segments; ++s) {
    const int64_t width = random.channels(40);
    q.segment[s] = {q.channels, width, random.chance(0.6), nullptr, nullptr};
    q.channels += width;
    outs.emplace_back(dtype, q.pixels * width);
    grads.emplace_back(dtype, q.pixels * width, random);
  }
  for (int s = 0; s < q.segments; ++s)
    q.segment[s].out = outs[static_cast<size_t>(s)].data(), q.segment[s].grad = grads[static_cast<size_t>(s)].data();
  const int64_t c = q.channels;
  const Numbers x(dtype, q.pixels * c, random), weight(wide, c, random), bias(wide, c, random);
  Numbers mean(wide, c, random), var(wide, c), d_x(dtype, q.pixels * c), d_weight(wide, c), d_bias(wide, c);
  for (int64_t k = 0; k < c; ++k) var.set(k, 0.5 + random.uniform());
  q.x = x.data(), q.weight = weight.data(), q.bias = bias.data(), q.mean = mean.data(), q.var = var.data();
  q.d_x = d_x.data(), q.d_weight = d_weight.data(), q.d_bias = d_bias.data();
  const Kernels& kernels = *set.with(&Kernels::norm);
  kernels.norm(q, true);
  kernels.norm(q, false);

  const auto sized = [](int64_t count) { return std::vector<double>(static_cast<size_t>(count)); };
  auto e_mean = sized(c), e_var = sized(c), e_weight = sized(c), e_bias = sized(c), e_x = sized(q.pixels * c);
  for (int s = 0; s < q.segments; ++s) {
    const NormProblem::Segment& segment = q.segment[s];
    auto out = sized(q.pixels * segment.width);
    for (int64_t k = segment.begin; k < segment.begin + segment.width; ++k) {
      const size_t at = static_cast<size_t>(k);
      const double count = static_cast<double>(q.pixels);
      double m = 0, v = 0, sum = 0, product = 0;
      for (int64_t p = 0; p < q.pixels; ++p) m += x[p * c + k] / count;
      for (int64_t p = 0; p < q.pixels; ++p) v += (x[p * c + k] - m) * (x[p * c + k] - m) / count;
      if (!q.batch) m = mean[k], v = var[k];
      e_mean[at] = m, e_var[at] = v;
      const double inverse = 1 / std::sqrt(v + q.eps);
      auto masked = sized(q.pixels);
      for (int64_t p = 0; p < q.pixels; ++p) {
        const double d = (x[p * c + k] - m) * inverse, y = d * weight[k] + bias[k];
        const int64_t i = p * segment.width + k - segment.begin;
        out[static_cast<size_t>(i)] = segment.relu ? std::max(y, 0.0) : y;
        const double g = segment.relu && y <= 0 ? 0 : grads[static_cast<size_t>(s)][i];
        masked[static_cast<size_t>(p)] = g, sum += g, product += g * d;
      }
      e_weight[at] = product, e_bias[at] = sum;
      for (int64_t p = 0; p < q.pixels; ++p) {
        const double d = (x[p * c + k] - m) * inverse, g = masked[static_cast<size_t>(p)];
        e_x[static_cast<size_t>(p * c + k)] =
            weight[k] * inverse * (q.batch ? g - sum / count - d * product / count : g);
      }
    }
    check_close(outs[static_cast<size_t>(s)], out, "normalized, " + std::to_string(c) + " channels");
  }
  check_close(mean, e_mean, "mean"), check_close(var, e_var, "variance");
  check_close(d_x, e_x, "gradient"), check_close(d_weight, e_weight, "of the weight"),
      check_close(d_bias, e_bias, "of the bias");
}

}  // namespace hrnet_fast
