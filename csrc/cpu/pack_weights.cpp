// Weights of planned convolutions in the order in which the kernels read them.
#include <cstring>

#include "convolution.h"
#include "half.h"
#include "problem.h"

namespace hrnet_fast {
namespace {

int64_t blocks_of(int64_t c_out) { return (c_out + kChannelBlock - 1) / kChannelBlock; }

struct Packing {
  const float* weight;
  float* packed;
  int64_t c_out, c_in, taps;
  int n;              // rows of the filter's transform; 0: none
  const double (*g)[3];
};

// Winograd's transform of 3x3 filters, for the points that winograd.h transforms its inputs with.
constexpr double kSqrt2 = 1.41421356237309504880;
constexpr double kG4[6][3] = {{1, 0, 0},
                              {-2. / 3, -kSqrt2 / 3, -1. / 3},
                              {-2. / 3, kSqrt2 / 3, -1. / 3},
                              {1. / 6, kSqrt2 / 6, 1. / 3},
                              {1. / 6, -kSqrt2 / 6, 1. / 3},
                              {0, 0, 1}};
constexpr double kG2[4][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};

// One block of output channels: [tap or point][c_in][kChannelBlock], zeros behind the last channel.
void pack_blocks(int64_t begin, int64_t end, void* context) {
  const Packing& p = *static_cast<const Packing*>(context);
  const int points = p.n == 0 ? static_cast<int>(p.taps) : p.n * p.n;
  for (int64_t block = begin; block < end; ++block) {
    float* to = p.packed + block * points * p.c_in * kChannelBlock;
    for (int64_t o = 0; o < kChannelBlock; ++o) {
      const int64_t channel = block * kChannelBlock + o;
      for (int64_t c = 0; c < p.c_in; ++c) {
        const float* w = p.weight + (channel * p.c_in + c) * p.taps;
        float* at = to + c * kChannelBlock + o;
        const int64_t step = p.c_in * kChannelBlock;
        if (channel >= p.c_out) {
          for (int i = 0; i < points; ++i) at[i * step] = 0.f;
        } else if (p.n == 0) {
          for (int i = 0; i < points; ++i) at[i * step] = w[i];
        } else {
          double half[6][3];  // g w
          for (int r = 0; r < p.n; ++r)
            for (int x = 0; x < 3; ++x) half[r][x] = p.g[r][0] * w[x] + p.g[r][1] * w[3 + x] + p.g[r][2] * w[6 + x];
          for (int r = 0; r < p.n; ++r)
            for (int x = 0; x < p.n; ++x)
              at[(r * p.n + x) * step] =
                  static_cast<float>(half[r][0] * p.g[x][0] + half[r][1] * p.g[x][1] + half[r][2] * p.g[x][2]);
        }
      }
    }
  }
}

// The same with two input channels, rounded to bfloat16, in the bits of a float: [tap][c_in / 2][kChannelBlock].
void pack_pairs(int64_t begin, int64_t end, void* context) {
  const Packing& p = *static_cast<const Packing*>(context);
  const int64_t pairs = (p.c_in + 1) / 2;
  const auto bits = [&](int64_t channel, int64_t c, int64_t tap) -> uint32_t {
    if (channel >= p.c_out || c >= p.c_in) return 0;
    return to_bfloat16(p.weight[(channel * p.c_in + c) * p.taps + tap]).bits;
  };
  for (int64_t block = begin; block < end; ++block)
    for (int64_t tap = 0; tap < p.taps; ++tap)
      for (int64_t c = 0; c < pairs; ++c)
        for (int64_t o = 0; o < kChannelBlock; ++o) {
          const int64_t channel = block * kChannelBlock + o;
          const uint32_t both = bits(channel, 2 * c, tap) | bits(channel, 2 * c + 1, tap) << 16;
          std::memcpy(p.packed + ((block * p.taps + tap) * pairs + c) * kChannelBlock + o, &both, sizeof(both));
        }
}

int points_of(Algorithm algorithm) {
  return algorithm == Algorithm::kWinograd4 ? 6 : algorithm == Algorithm::kWinograd2 ? 4 : 0;
}

}  // namespace

int64_t packed_weight_size(Algorithm algorithm, int64_t c_out, int64_t c_in, int kernel) {
  const int n = points_of(algorithm);
  if (algorithm == Algorithm::kPairs) c_in = (c_in + 1) / 2;
  return blocks_of(c_out) * (n == 0 ? kernel * kernel : n * n) * c_in * kChannelBlock;
}

void pack_weights(Algorithm algorithm, const float* weight, int64_t c_out, int64_t c_in, int kernel, float* packed) {
  const int n = points_of(algorithm);
  Packing packing = {weight, packed, c_out, c_in, int64_t{kernel} * kernel, n, n == 6 ? kG4 : kG2};
  parallel_for(blocks_of(c_out), 1, algorithm == Algorithm::kPairs ? pack_pairs : pack_blocks, &packing);
}

}  // namespace hrnet_fast
