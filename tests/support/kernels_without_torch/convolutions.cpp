// Planned convolutions against loops in float64, and conversions between dtypes bit by bit.
#include <algorithm>

#include "support.h"

namespace hrnet_fast {
namespace {

// A convolution and all that it points to.
struct Case {
  Convolution q;
  std::vector<Numbers> sources;
  Numbers residual, output, weight, packed, bias, border;
  std::vector<double> expected;

  std::string what() const {
    return "algorithm " + std::to_string(static_cast<int>(q.algorithm)) + ", " + std::to_string(q.c_in) + " to " +
           std::to_string(q.c_out) + " channels, kernel " + std::to_string(q.kernel) + ", stride " +
           std::to_string(q.stride) + ", " + std::to_string(q.h) + " x " + std::to_string(q.w);
  }
  double source(int64_t image, int64_t c, int64_t y, int64_t x) const {
    int s = 0;
    const int64_t channel = c;
    while (c >= q.source[s].channels) c -= q.source[s++].channels;
    if (y < 0 || x < 0 || y >= q.h || x >= q.w) return q.border == nullptr ? 0 : border[channel];
    return sources[static_cast<size_t>(s)][image * q.source[s].image_stride + (c * q.h + y) * q.w + x];
  }
  void compute(const std::vector<double>& before) {
    expected = before;  // of the gaps between images
    const int64_t plane = q.h_out * q.w_out, pad = q.kernel / 2;
    for (int64_t i = 0; i < q.n; ++i)
      for (int64_t o = 0; o < q.c_out; ++o)
        for (int64_t p = 0; p < plane; ++p) {
          double sum = bias[o];
          for (int64_t c = 0; c < q.c_in; ++c)
            for (int64_t ky = 0; ky < q.kernel; ++ky)
              for (int64_t kx = 0; kx < q.kernel; ++kx)
                sum += weight[((o * q.c_in + c) * q.kernel + ky) * q.kernel + kx] *
                       source(i, c, p / q.w_out * q.stride + ky - pad, p % q.w_out * q.stride + kx - pad);
          if (q.residual.data != nullptr) sum += residual[i * q.residual.image_stride + o * plane + p];
          if (o >= q.relu_from) sum = std::max(sum, 0.0);
          expected[static_cast<size_t>(i * q.output.image_stride + o * plane + p)] = sum;
        }
  }
};

Case any_case(Random& random) {
  Case made;
  Convolution& q = made.q;
  q.algorithm = random.one_of({Algorithm::kDirect, Algorithm::kWinograd2, Algorithm::kWinograd4});
  const bool winograd = is_winograd(q.algorithm);
  q.packed = tile_of(q.algorithm) == 2 && random.chance(0.5) ? Algorithm::kWinograd4 : q.algorithm;
  q.kernel = winograd ? 3 : static_cast<int>(random.one_of({1, 3, 3, 5, 7}));
  q.stride = winograd ? 1 : static_cast<int>(random.between(1, 2));
  q.n = random.between(1, 2), q.h = random.between(1, 20), q.w = random.between(1, 30);
  q.c_out = random.channels(50), q.relu_from = random.one_of({int64_t{0}, q.c_out, random.between(0, q.c_out)});
  q.h_out = (q.h - 1) / q.stride + 1, q.w_out = (q.w - 1) / q.stride + 1;
  q.sources = winograd ? 1 : static_cast<int>(random.between(1, 2));
  const DType stored = random.dtype(false);
  for (int s = 0; s < q.sources; ++s) {
    const int64_t channels = random.channels(40), stride = channels * q.h * q.w + random.between(0, 5);
    made.sources.emplace_back(stored, q.n * stride, random);
    q.source[s] = {made.sources.back().data(), channels, stride, stored};
    q.c_in += channels;
  }
  const int64_t taps = q.kernel * q.kernel, stride = q.c_out * q.h_out * q.w_out + random.between(0, 5);
  const DType written = random.dtype(false);
  made.output = Numbers(written, q.n * stride, random);
  q.output = {made.output.data(), q.c_out, stride, written};
  if (random.chance(0.5)) {
    made.residual = random.chance(0.5) ? made.output : Numbers(written, q.n * stride, random);
    q.residual = {made.residual.data(), q.c_out, stride, written};
  } else {
    q.residual.channels = q.c_out, q.residual.dtype = written;
  }
  const double scale = 1 / std::sqrt(static_cast<double>(q.c_in * taps));
  made.weight = Numbers(DType::kFloat32, q.c_out * q.c_in * taps, random, scale);
  made.packed = Numbers(DType::kFloat32, packed_weight_size(q.packed, q.c_out, q.c_in, q.kernel));
  pack_weights(q.packed, reinterpret_cast<const float*>(made.weight.data()), q.c_out, q.c_in, q.kernel,
               reinterpret_cast<float*>(made.packed.data()));
  made.bias = Numbers(DType::kFloat32, q.c_out, random);
  made.border = Numbers(DType::kFloat32, q.c_in, random);
  q.weight = reinterpret_cast<const float*>(made.packed.data());
  q.bias = reinterpret_cast<const float*>(made.bias.data());
  if (q.algorithm == Algorithm::kDirect && random.chance(0.2))
    q.border = reinterpret_cast<const float*>(made.border.data());
  return made;
}

// Copies numbers by a convolution with a weight of one.
void copy(const Kernels& kernels, const Numbers& from, Numbers& to) {
  const float one = 1, zero = 0;
  Numbers packed(DType::kFloat32, packed_weight_size(Algorithm::kDirect, 1, 1, 1));
  pack_weights(Algorithm::kDirect, &one, 1, 1, 1, reinterpret_cast<float*>(packed.data()));
  Convolution q;
  q.sources = 1, q.kernel = 1, q.n = q.c_in = q.c_out = q.h = q.h_out = 1, q.w = q.w_out = from.count();
  q.relu_from = 1;
  q.source[0] = {from.data(), 1, from.count(), from.dtype()};
  q.output = {to.data(), 1, to.count(), to.dtype()};
  q.residual.channels = 1, q.residual.dtype = to.dtype();
  q.weight = reinterpret_cast<const float*>(packed.data()), q.bias = &zero;
  kernels.convolve(&q, 1);
  to.check_guards("converted");
}

bool same(double a, double b) { return a == b || (a != a && b != b); }

}  // namespace

void test_convolutions(const InstructionSet& set, Random& random) {
  const Kernels* kernels = set.with(&Kernels::convolve);
  if (kernels == nullptr) return;
  std::vector<Case> cases;
  const int64_t count = random.between(1, 3);
  for (int64_t i = 0; i < count; ++i) cases.push_back(any_case(random));
  std::vector<Convolution> problems;
  for (Case& one : cases) {
    std::vector<double> before;
    for (int64_t i = 0; i < one.output.count(); ++i) before.push_back(one.output[i]);
    one.compute(before);
    problems.push_back(one.q);
  }
  kernels->convolve(problems.data(), static_cast<int>(count));
  for (const Case& one : cases) check_close(one.output, one.expected, one.what());
}

// All numbers of 16 bits, and numbers of 32 that lie between them, are infinite, or NaN.
void test_conversions(const InstructionSet& set, Random& random) {
  const Kernels* kernels = set.with(&Kernels::convolve);
  if (kernels == nullptr) return;
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    Numbers narrow(dtype, 1 << 16), wide(DType::kFloat32, 1 << 16);
    for (int64_t i = 0; i < narrow.count(); ++i) narrow.put(i, static_cast<uint16_t>(i));
    copy(*kernels, narrow, wide);
    for (int64_t i = 0; i < narrow.count(); ++i)
      if (!same(narrow[i], wide[i])) throw Failure("widened: " + std::to_string(i));
    for (int64_t i = 0; i < wide.count(); ++i) {
      const bool tie = random.chance(0.3), any = random.chance(0.3);  // halves of the last digit; any bits
      const double next = narrow[i ^ 1];
      wide.set(i, tie ? (narrow[i] + next) / 2 : narrow[i] * (1 + 1e-3 * random.normal()));
      if (any) wide.put(i, static_cast<uint32_t>(random.bits()));
    }
    copy(*kernels, wide, narrow);
    for (int64_t i = 0; i < narrow.count(); ++i) {
      const float x = wide.as<float>(i);
      const double expected = dtype == DType::kBFloat16 ? to_float(to_bfloat16(x)) : to_float(to_float16(x));
      if (!same(narrow[i], expected)) throw Failure("narrowed: " + std::to_string(wide.as<uint32_t>(i)));
    }
  }
}

}  // namespace hrnet_fast
