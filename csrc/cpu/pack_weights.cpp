// Weights of planned convolutions in the order in which the kernels read them.
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
  int n;              // rows of the filter's transform; 0: none
  const double (*g)[3];
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
constexpr double kG2[4][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};

// A filter at a tap, or transformed at a point.
class Filter {
 public:
  Filter(const Packing& p, int64_t channel, int64_t c) : n_(p.n), g_(p.g) {
    present_ = channel < p.c_out && c < p.c_in;
    if (!present_) return;
    tap_ = p.weight + (channel * p.c_in + c) * p.taps;
    for (int r = 0; r < n_; ++r)  // g w
      for (int x = 0; x < 3; ++x) half_[r][x] = g_[r][0] * tap_[x] + g_[r][1] * tap_[3 + x] + g_[r][2] * tap_[6 + x];
  }
  float at(int64_t point) const {
    if (!present_) return 0.f;
    if (n_ == 0) return tap_[point];
    const double (&h)[3] = half_[point / n_];
    const double (&g)[3] = g_[point % n_];
    return static_cast<float>(h[0] * g[0] + h[1] * g[1] + h[2] * g[2]);
  }

 private:
  const int n_;
  const double (*const g_)[3];
  bool present_;
  const float* tap_;
  double half_[6][3];
};

// One block of output channels: [tap or point][c_in][kChannelBlock], zeros behind the last channel. With pairs two
// input channels, rounded to bfloat16, lie in the bits of a float: [tap or point][c_in / 2][kChannelBlock].
void pack_blocks(int64_t begin, int64_t end, void* context) {
  const Packing& p = *static_cast<const Packing*>(context);
  const int64_t points = p.n == 0 ? p.taps : int64_t{p.n} * p.n, depth = p.pairs ? (p.c_in + 1) / 2 : p.c_in;
  const int64_t step = depth * kChannelBlock;
  for (int64_t block = begin; block < end; ++block)
    for (int64_t o = 0; o < kChannelBlock; ++o)
      for (int64_t c = 0; c < depth; ++c) {
        const int64_t channel = block * kChannelBlock + o;
        float* to = p.packed + block * points * step + c * kChannelBlock + o;
        if (p.pairs) {
          const Filter low(p, channel, 2 * c), high(p, channel, 2 * c + 1);
          for (int64_t i = 0; i < points; ++i) {
            const uint32_t both = to_bfloat16(low.at(i)).bits | uint32_t{to_bfloat16(high.at(i)).bits} << 16;
            std::memcpy(to + i * step, &both, sizeof(both));
          }
        } else {
          const Filter filter(p, channel, c);
          for (int64_t i = 0; i < points; ++i) to[i * step] = filter.at(i);
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
  Packing packing = {
      weight, packed, c_out, c_in, int64_t{kernel} * kernel, n, n == 6 ? kG4 : kG2, has_pairs(algorithm)};
  parallel_for(blocks_of(c_out), 1, pack_blocks, &packing);
}

}  // namespace hrnet_fast
