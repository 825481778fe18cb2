// What runs on tiles: bit by bit the same on all instruction sets, which plain loops are compared with as well.
#include <algorithm>

#include "../../../csrc/cpu/tiled_graph.h"
#include "support.h"

namespace hrnet_fast {
namespace {

// An image in all forms that it has, its borders as tiles want them.
struct Picture {
  Extent size;
  int64_t n = 0, channels = 0;
  Numbers high, low;
  std::vector<uint8_t> bytes;

  Picture() = default;
  Picture(Extent size_, int64_t n_, int64_t channels_) : size(size_), n(n_), channels(channels_) {}
  int64_t span() const { return size.span(n, channels); }
  int64_t at(int64_t i, int64_t y, int64_t x, int64_t c) const {
    return i * size.image(channels) + size.at(y, x) * channels + c;
  }
  template <class F>
  void each(F f) const {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t y = 0; y < size.h; ++y)
        for (int64_t x = 0; x < size.w; ++x)
          for (int64_t c = 0; c < channels; ++c) f(i, y, x, c);
  }
  Picture& with_numbers(Random& random, bool rest) {
    high = Numbers(DType::kBFloat16, span());
    if (rest) low = Numbers(DType::kBFloat16, span());
    for (int64_t i = 0; i < span(); ++i) high.set(i, 0);
    each([&](int64_t i, int64_t y, int64_t x, int64_t c) {
      const double value = random.normal();
      high.set(at(i, y, x, c), value);
      if (rest) low.set(at(i, y, x, c), value - high[at(i, y, x, c)]);
    });
    return *this;
  }
  Picture& with_bytes(Random& random, uint8_t zero) {
    bytes.assign(static_cast<size_t>(span()), zero);
    each([&](int64_t i, int64_t y, int64_t x, int64_t c) {
      bytes[static_cast<size_t>(at(i, y, x, c))] = static_cast<uint8_t>(random.between(0, 255));
    });
    return *this;
  }
  Picture& empty(bool numbers, bool rest, bool in_bytes) {
    if (numbers) high = Numbers(DType::kBFloat16, span());
    if (rest) low = Numbers(DType::kBFloat16, span());
    if (in_bytes) bytes.assign(static_cast<size_t>(span()), 0x5a);
    return *this;
  }
  Bordered bordered() {
    return {high.count() > 0 ? reinterpret_cast<BFloat16*>(high.data()) : nullptr,
            low.count() > 0 ? reinterpret_cast<BFloat16*>(low.data()) : nullptr, bytes.empty() ? nullptr : bytes.data(),
            channels};
  }
  double value(int64_t i) const { return high[i] + (low.count() > 0 ? low[i] : 0); }
  // Pixels and what tiles read around them. Zeros have no sign here.
  void check_equal(const Picture& other, const std::string& what) const {
    for (const Numbers* x : {&high, &low}) x->check_guards(what);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t y = -1; y <= size.h; ++y)
        for (int64_t x = -1; x <= size.w; ++x)
          for (int64_t c = 0; c < channels; ++c) {
            const int64_t k = at(i, y, x, c);
            const bool inside = y >= 0 && x >= 0 && y < size.h && x < size.w;
            if ((high.count() > 0 && high[k] != other.high[k]) ||
                (inside && low.count() > 0 && low[k] != other.low[k]) ||
                (!bytes.empty() && bytes[static_cast<size_t>(k)] != other.bytes[static_cast<size_t>(k)]))
              throw Failure(what + ": another number at image " + std::to_string(i) + ", row " + std::to_string(y) +
                            ", column " + std::to_string(x) + ", channel " + std::to_string(c));
          }
  }
  void check_near(const Picture& other, const std::string& what) const {
    std::vector<double> expected;
    Numbers mine(DType::kFloat64, n * size.h * size.w * channels);
    int64_t count = 0;
    each([&](int64_t i, int64_t y, int64_t x, int64_t c) {
      expected.push_back(other.value(at(i, y, x, c)));
      mine.set(count++, value(at(i, y, x, c)));
    });
    check_close(mine, expected, tolerances[static_cast<int>(DType::kBFloat16)], what);
  }
};

// Weights of bytes or of float32, and as tiles read them.
struct Packed {
  std::vector<int8_t> bytes;
  Numbers numbers;
  std::vector<char> packed;
  Packed(Random& random, int64_t c_out, int64_t c_in, int kernel, bool in_bytes) {
    const int64_t count = c_out * c_in * kernel * kernel;
    packed.resize(static_cast<size_t>(tiled_weight_bytes(c_out, c_in, kernel, in_bytes ? 1 : 2)));
    if (in_bytes) {
      for (int64_t i = 0; i < count; ++i) bytes.push_back(static_cast<int8_t>(random.between(-128, 127)));
      pack_tiles(bytes.data(), c_out, c_in, kernel, packed.data());
    } else {
      numbers = Numbers(DType::kFloat32, count, random, 0.2);
      pack_tiles(reinterpret_cast<const float*>(numbers.data()), c_out, c_in, kernel, packed.data());
    }
  }
};

template <class Q>
void run(const TiledKernels& kernels, const Q& q) {
  TiledGraph graph;
  graph.add(q, {});
  graph.run(kernels, num_threads(), nullptr);
}

// Runs q on the instruction set and on arrays; results must be the same, or near where the set has products of its own.
template <class Q>
void compare(const InstructionSet& set, Q q, const Picture& like, const std::string& what) {
  Picture expected = like;
  q.output = expected.bordered();
  run(tiled_emulated, q);
  if (const Kernels* kernels = set.with(&Kernels::tiled)) {
    Picture found = like;
    q.output = found.bordered();
    run(*kernels->tiled, q);
    found.check_equal(expected, what);
  }
  const Kernels* kernels = set.with(&Kernels::tiled_bfloat16);
  if (kernels != nullptr && q.scale == nullptr && like.high.count() > 0) {
    Picture found = like;
    q.output = found.bordered();
    run(*kernels->tiled_bfloat16, q);
    found.check_near(expected, what + ", in bfloat16 alone");
  }
}

Rounding any_rounding(Random& random) {
  return {static_cast<float>(1 + 40 * random.uniform()), static_cast<uint8_t>(random.one_of({0, 0, 128, 77}))};
}

Extent any_size(Random& random, int64_t most) {
  Extent size;
  size.h = random.between(1, most), size.w = random.between(1, most + 8);
  return size;
}

const float* floats(const Numbers& x) { return reinterpret_cast<const float*>(x.data()); }

}  // namespace

void test_tiled_convolution(const InstructionSet& set, Random& random) {
  const bool in_bytes = random.chance(0.6);
  TiledConvolution q;
  q.n = random.between(1, 2), q.in = any_size(random, 12), q.c_out = random.channels(80);
  q.kernel = random.one_of({1, 3}), q.stride = static_cast<int>(random.between(1, 2)), q.relu = random.chance(0.6);
  q.out = {(q.in.h - 1) / q.stride + 1, (q.in.w - 1) / q.stride + 1};
  q.sources = static_cast<int>(random.between(1, 2));
  const uint8_t zero = static_cast<uint8_t>(random.one_of({0, 128}));
  std::vector<Picture> sources(static_cast<size_t>(q.sources));
  std::vector<Packed> weights;
  int64_t taps = 0;
  for (int s = 0; s < q.sources; ++s) {
    Picture& source = sources[static_cast<size_t>(s)] = Picture(q.in, q.n, random.channels(40));
    in_bytes ? source.with_bytes(random, zero) : source.with_numbers(random, false);
    q.source[s] = source.bordered();
    weights.emplace_back(random, q.c_out, source.channels, q.kernel, in_bytes);
    taps += source.channels * q.kernel * q.kernel;
  }
  for (int s = 0; s < q.sources; ++s) q.weight[s] = weights[static_cast<size_t>(s)].packed.data();
  const Numbers bias(DType::kFloat32, q.c_out, random);
  const Numbers scale(DType::kFloat32, q.c_out, random, 1e-4 / std::sqrt(static_cast<double>(taps)));
  q.bias = floats(bias), q.scale = in_bytes ? floats(scale) : nullptr;
  q.rounding = any_rounding(random);
  const int forms = static_cast<int>(random.between(0, 2));  // numbers; and the rest, of sums of bfloat16, or bytes
  Picture output(q.out, q.n, q.c_out);
  output.empty(forms < 2 || !in_bytes, forms == 1 && !in_bytes, forms > 0 && in_bytes);
  Picture residual(q.out, q.n, q.c_out);
  q.residual.channels = q.c_out;
  if (random.chance(0.5)) q.residual = residual.with_numbers(random, !in_bytes && random.chance(0.5)).bordered();
  const std::string what = std::string(in_bytes ? "bytes" : "bfloat16") + ", " + std::to_string(q.c_out) +
                           " channels, kernel " + std::to_string(q.kernel) + ", stride " + std::to_string(q.stride);
  compare(set, q, output, what);
  if (!in_bytes) return;

  Picture found = output, expected = output;
  const Kernels* kernels = set.with(&Kernels::tiled);
  q.output = found.bordered();
  run(kernels == nullptr ? tiled_emulated : *kernels->tiled, q);
  expected.each([&](int64_t i, int64_t y, int64_t x, int64_t o) {
    int64_t sum = 0;
    for (int s = 0; s < q.sources; ++s) {
      const Picture& source = sources[static_cast<size_t>(s)];
      const int64_t pad = q.kernel / 2;
      for (int64_t ky = 0; ky < q.kernel; ++ky)
        for (int64_t kx = 0; kx < q.kernel; ++kx)
          for (int64_t c = 0; c < source.channels; ++c) {
            const int64_t row = y * q.stride + ky - pad, column = x * q.stride + kx - pad;
            const bool inside = row >= 0 && column >= 0 && row < q.in.h && column < q.in.w;
            const int64_t w = ((o * source.channels + c) * q.kernel + ky) * q.kernel + kx;
            sum += (inside ? source.bytes[static_cast<size_t>(source.at(i, row, column, c))] : zero) *
                   weights[static_cast<size_t>(s)].bytes[static_cast<size_t>(w)];
          }
    }
    const int64_t at = expected.at(i, y, x, o);
    float number = std::fma(static_cast<float>(sum), scale.as<float>(o), bias.as<float>(o));
    if (q.residual.high != nullptr) number += static_cast<float>(residual.high[at]);
    if (q.relu && number < 0) number = 0;
    if (expected.high.count() > 0) expected.high.put(at, to_bfloat16(number));
    const float steps = std::fma(number, q.rounding.per_unit, static_cast<float>(q.rounding.zero));
    if (!expected.bytes.empty())
      expected.bytes[static_cast<size_t>(at)] =
          static_cast<uint8_t>(std::nearbyint(std::min(std::max(steps, 0.f), 255.f)));
    if ((expected.high.count() > 0 && expected.high[at] != found.high[at]) ||
        (!expected.bytes.empty() && expected.bytes[static_cast<size_t>(at)] != found.bytes[static_cast<size_t>(at)]))
      throw Failure(what + ": another number than by plain loops");
  });
}

void test_tiled_exchange(const InstructionSet& set, Random& random) {
  const bool in_bytes = random.chance(0.5), projects = random.chance(0.3);
  TiledExchange q;
  q.n = random.between(1, 2), q.out = any_size(random, 12), q.channels = random.channels(100);
  q.mode = static_cast<Mode>(random.between(0, 2)), q.relu = random.chance(0.6);
  q.count = static_cast<int>(random.between(1, 4));
  std::vector<Picture> inputs(static_cast<size_t>(q.count));
  std::vector<Packed> weights;
  weights.reserve(inputs.size() + 1);
  for (int j = 0; j < q.count; ++j) {
    const bool same = random.chance(0.5), weighted = same && random.chance(0.6);
    q.size[j] = q.out;
    if (!same) q.size[j].h = random.between(1, q.out.h), q.size[j].w = random.between(1, q.out.w);
    Picture& input = inputs[static_cast<size_t>(j)];
    input = Picture(q.size[j], q.n, weighted ? random.channels(60) : q.channels);
    weighted&& in_bytes ? input.with_bytes(random, 0) : input.with_numbers(random, !weighted && random.chance(0.4));
    q.input[j] = input.bordered();
    if (!weighted) continue;
    weights.emplace_back(random, q.channels, input.channels, 1, in_bytes);
    q.weight[j] = weights.back().packed.data();
  }
  const Numbers bias(DType::kFloat32, q.channels, random), scale(DType::kFloat32, q.channels, random, 1e-3);
  if (random.chance(0.7)) q.bias = floats(bias);
  if (in_bytes) q.scale = floats(scale);
  const int64_t c = projects ? random.channels(40) : q.channels;
  const Numbers projection_bias(DType::kFloat32, c, random);
  if (projects) {
    weights.emplace_back(random, c, q.channels, 1, false);
    q.projection = weights.back().packed.data(), q.projection_bias = floats(projection_bias);
  }
  q.rounding = any_rounding(random);
  Picture output(q.out, q.n, c);
  const int forms = static_cast<int>(random.between(0, 2));
  output.empty(forms < 2, forms == 1, forms == 2);
  compare(set, q, output, std::to_string(q.channels) + " channels, " + std::to_string(q.count) + " inputs");
}

void test_tiled_layouts(const InstructionSet& set, Random& random) {
  Reorder q;
  q.n = random.between(1, 2), q.size = any_size(random, 20);
  const int64_t c = random.channels(40), image = c * q.size.h * q.size.w;
  const DType dtype = random.dtype(false);
  const Numbers from(dtype, q.n * image, random), scale(DType::kFloat32, c, random), shift(DType::kFloat32, c, random);
  q.from = {from.data(), c, image, dtype};
  if (random.chance(0.5)) q.scale = floats(scale), q.shift = floats(shift);
  q.rounding = any_rounding(random);
  const int forms = static_cast<int>(random.between(0, 2));
  const Picture like = Picture(q.size, q.n, c).empty(true, forms == 1, forms == 2);
  Picture expected = like, found = like;
  const Kernels* kernels = set.with(&Kernels::tiled);
  const TiledKernels& tiled = kernels == nullptr ? tiled_emulated : *kernels->tiled;
  q.to = expected.bordered();
  run(tiled_emulated, q);
  q.to = found.bordered();
  run(tiled, q);
  found.check_equal(expected, "reordered");

  Restore back;
  back.n = q.n, back.size = q.size, back.from = found.bordered();
  const DType written = random.one_of({DType::kFloat32, DType::kBFloat16});
  Numbers to(written, q.n * image);
  back.to = {to.data(), c, image, written};
  run(tiled, back);
  to.check_guards("restored");
  found.each([&](int64_t i, int64_t y, int64_t x, int64_t k) {
    if (to[i * image + (k * q.size.h + y) * q.size.w + x] != found.high[found.at(i, y, x, k)])
      throw Failure("restored: another number");
  });
}

}  // namespace hrnet_fast
