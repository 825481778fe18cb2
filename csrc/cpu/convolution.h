// What one convolution of a planned network asks of the CPU kernels, in plain data, as in problem.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../types.h"

namespace hrnet_fast {

constexpr int kMaxSources = 4;
constexpr int kMaxKernel = 15;
constexpr int64_t kChannelBlock = 6;  // output channels whose weights lie together: 18, 36, 48, 72, 96 are multiples

// Winograd: output tiles of 2x2 or 4x4 pixels. Pairs: factors in bfloat16, two channels a multiplication.
enum class Algorithm { kDirect, kWinograd2, kWinograd4, kDirectPairs, kWinograd2Pairs, kWinograd4Pairs };
constexpr int kAlgorithms = 6;
constexpr int tile_of(Algorithm a) { return static_cast<int>(a) % 3 * 2; }  // 0: direct
constexpr bool is_winograd(Algorithm a) { return tile_of(a) != 0; }
constexpr bool has_pairs(Algorithm a) { return a >= Algorithm::kDirectPairs; }
// Whether an algorithm reads weights that are packed for another one, or for itself: the points of tiles of 2x2 are
// among those of 4x4.
constexpr bool reads_weights_of(Algorithm a, Algorithm packed) {
  return a == packed || (tile_of(a) == 2 && tile_of(packed) == 4 && has_pairs(a) == has_pairs(packed));
}

struct Planes {  // [n, channels, h, w], rows and planes dense
  const void* data = nullptr;
  int64_t channels = 0;
  int64_t image_stride = 0;  // elements from one image to the next
  DType dtype = DType::kFloat32;
};

// output = act(bias + residual + sum over sources of their convolutions), padded with kernel / 2 zeros on each side.
struct Convolution {
  Algorithm algorithm = Algorithm::kDirect;
  int sources = 0;  // more than one: their channels in this order are the input channels
  Planes source[kMaxSources];
  Planes residual;  // of the output's shape and dtype; data null: absent
  Planes output;
  Algorithm packed = Algorithm::kDirect;  // that the weight is packed for
  const float* weight = nullptr;  // as pack_weights lays it out
  const float* bias = nullptr;  // [c_out]
  const float* border = nullptr;  // [c_in], what lies around each channel; null: zeros. For kDirect
  int64_t n = 0, c_in = 0, h = 0, w = 0, c_out = 0, h_out = 0, w_out = 0;
  int kernel = 3, stride = 1;
  int64_t relu_from = 0;  // ReLU on the output channels from this one on
};

constexpr int64_t kMaxConvolutions = 16;

// Elements of a packed weight (throws where they exceed 64 bits), and the packing of weight [c_out, c_in, kernel,
// kernel].
int64_t packed_weight_size(Algorithm algorithm, int64_t c_out, int64_t c_in, int kernel);
void pack_weights(Algorithm algorithm, const float* weight, int64_t c_out, int64_t c_in, int kernel, float* packed);

// What convolutions cost on one instruction set, in multiply-adds of a register.
struct ConvolutionCosts {
  int lanes, side;  // of a register; tiles that lie side by side in it
  double reading;  // of a weight from memory
  double transforms2, transforms4;  // of a register of tiles of a channel, there and back
  double direct_product;  // without Winograd's buffer between products and result
};
// The cheapest algorithm of a 3x3 convolution of stride 1. `packed`: a bit for each of the first three algorithms whose
// weights are packed already.
Algorithm cheapest(const ConvolutionCosts& costs, int64_t n, int64_t c_out, int64_t h, int64_t w, int64_t c_in,
                   bool pairs, int64_t packed);

}  // namespace hrnet_fast
