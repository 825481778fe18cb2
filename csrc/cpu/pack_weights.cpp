// Weights of planned convolutions in the order in which the kernels read them.
#include <algorithm>
#include <cstring>

#include "../checked.h"
#include "convolution.h"
#include "half.h"
#include "problem.h"

namespace hrnet_fast {
namespace {

int64_t blocks_of(int64_t c_out) { return (c_out - 1) / kChannelBlock + 1; }
int rows_of(Algorithm algorithm) { return is_winograd(algorithm) ? tile_of(algorithm) + 2 : 0; }

struct Packing {
  const float* weight;
  float* packed;
  int64_t c_out, c_in, taps;
  int n;  // rows of the filter's transform; 0: none
  bool pairs;
};

// Winograd's transform of 3x3 filters, for the points that winograd.h transforms its inputs with.
constexpr double kSqrt2 = 1.41421356237309504880;
constexpr double kG4[6][3] = {{1, 0, 0},
                              {-2. / 3, -kSqrt2 / 3, -1. / 3},
                              {-2. / 3, kSqrt2 / 3, -1. / 3},
                              {1. / 6, kSqrt2 / 6, 1. / 3},
                              {1. / 6, -kSqrt2 / 6, 1. / 3},
                              {0, 0, 1}};
// Tiles of 2x2 have the first three of these points and the last one.
constexpr int kOfTwo[4] = {0, 1, 2, 5};

using Values = float[kChannelBlock];
constexpr int64_t kMaxPoints = kMaxKernel * kMaxKernel;

template <int n>
void transform(const double (&w)[9][kChannelBlock], Values* to) {
  double g[n][3], half[n][3][kChannelBlock];
  for (int r = 0; r < n; ++r) std::copy_n(kG4[n == 4 ? kOfTwo[r] : r], 3, g[r]);
  for (int r = 0; r < n; ++r)
    for (int x = 0; x < 3; ++x)
      for (int64_t o = 0; o < kChannelBlock; ++o)
        half[r][x][o] = g[r][0] * w[x][o] + g[r][1] * w[3 + x][o] + g[r][2] * w[6 + x][o];
  for (int r = 0; r < n; ++r)
    for (int s = 0; s < n; ++s)
      for (int64_t o = 0; o < kChannelBlock; ++o)
        to[r * n + s][o] =
            static_cast<float>(half[r][0][o] * g[s][0] + half[r][1][o] * g[s][1] + half[r][2][o] * g[s][2]);
}

// The filters from an input channel to a block of output channels, at every tap or transformed at every point; zeros
// where a channel is not there.
void filters(const Packing& p, int64_t block, int64_t c, Values* to) {
  const int64_t first = block * kChannelBlock, last = c < p.c_in ? std::min(kChannelBlock, p.c_out - first) : 0;
  const auto tap = [&](int64_t o, int64_t i) {
    return o < last ? p.weight[((first + o) * p.c_in + c) * p.taps + i] : 0.f;
  };
  if (p.n == 0) {
    for (int64_t i = 0; i < p.taps; ++i)
      for (int64_t o = 0; o < kChannelBlock; ++o) to[i][o] = tap(o, i);
    return;
  }
  double w[9][kChannelBlock];
  for (int64_t o = 0; o < kChannelBlock; ++o)
    for (int64_t i = 0; i < 9; ++i) w[i][o] = tap(o, i);
  if (p.n == 6)
    transform<6>(w, to);
  else
    transform<4>(w, to);
  for (int64_t i = 0; i < p.n * p.n; ++i)  // not zeros of another sign
    for (int64_t o = last; o < kChannelBlock; ++o) to[i][o] = 0.f;
}

// One block of output channels: [tap or point][c_in][kChannelBlock], zeros behind the last channel. With pairs two
// input channels, rounded to bfloat16, lie in the bits of a float: [tap or point][c_in / 2][kChannelBlock].
void pack_blocks(int64_t begin, int64_t end, void* context) {
  const Packing& p = *static_cast<const Packing*>(context);
  const int64_t points = p.n == 0 ? p.taps : int64_t{p.n} * p.n, depth = p.pairs ? (p.c_in + 1) / 2 : p.c_in;
  const int64_t step = depth * kChannelBlock;
  Values low[kMaxPoints], high[kMaxPoints];
  for (int64_t block = begin; block < end; ++block)
    for (int64_t c = 0; c < depth; ++c) {
      filters(p, block, p.pairs ? 2 * c : c, low);
      if (p.pairs) filters(p, block, 2 * c + 1, high);
      float* to = p.packed + block * points * step + c * kChannelBlock;
      for (int64_t i = 0; i < points; ++i, to += step) {
        for (int64_t o = 0; p.pairs && o < kChannelBlock; ++o) {
          const uint32_t both = to_bfloat16(low[i][o]).bits | uint32_t{to_bfloat16(high[i][o]).bits} << 16;
          std::memcpy(&low[i][o], &both, sizeof(both));
        }
        std::memcpy(to, low[i], sizeof(Values));
      }
    }
}

}  // namespace

int64_t packed_weight_size(Algorithm algorithm, int64_t c_out, int64_t c_in, int kernel) {
  const int n = rows_of(algorithm);
  const int64_t depth = has_pairs(algorithm) ? c_in / 2 + c_in % 2 : c_in;
  return checked_product(blocks_of(c_out), n == 0 ? kernel * kernel : n * n, depth, kChannelBlock);
}

void pack_weights(Algorithm algorithm, const float* weight, int64_t c_out, int64_t c_in, int kernel, float* packed) {
  const int n = rows_of(algorithm);
  Packing packing = {weight, packed, c_out, c_in, int64_t{kernel} * kernel, n, has_pairs(algorithm)};
  parallel_for(blocks_of(c_out), 1, pack_blocks, &packing);
}

}  // namespace hrnet_fast
