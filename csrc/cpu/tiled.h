// What convolutions and exchanges on matrix tiles ask of the CPU kernels, in plain data, as in convolution.h.
//
// Images are in bfloat16 with the channels of a pixel together, one pixel of zeros behind every row, and a row of zeros
// above and below. So the three taps of a kernel's row are 3 * channels neighbours, and sixteen output pixels are the
// rows of a tile, a constant number of bytes apart: tiles are loaded from the image itself, without a copy.
#pragma once

#include <cstdint>

#include "../checked.h"
#include "../types.h"
#include "convolution.h"
#include "half.h"

namespace hrnet_fast {

constexpr int64_t kTileBytes = 1024, kTileRow = 64;  // sixteen rows of 64 bytes
constexpr int64_t kTileDepth = 32;  // bfloat16 numbers of a row
constexpr int64_t kMaxTiledSide = int64_t{1} << 24;  // of images, and their channels: what follows fits 64 bits

// Where the pixels of an image lie, in pixels.
struct Extent {
  int64_t h = 0, w = 0;
  int64_t pitch() const { return w + 1; }
  int64_t at(int64_t y, int64_t x) const { return (y + 1) * pitch() + x + 1; }
  int64_t pixels() const { return (h + 2) * pitch() + 1; }
  // Elements from one image to the next. What a tile reads behind an image is multiplied by weights of zero: it has to
  // be finite, so half a tile's row of zeros lies there.
  int64_t image(int64_t channels) const { return pixels() * channels + kTileDepth; }
  // Elements of n images, with those that tiles at the end read for rows that nobody looks at.
  int64_t span(int64_t n, int64_t channels) const {
    return checked_sum(checked_product(n, image(channels)), 34 * channels + 256);
  }
};

// Numbers of more than bfloat16 are a sum of two: `high` is the number rounded, `low` what the rounding took away.
struct Bordered {
  BFloat16* high = nullptr;
  BFloat16* low = nullptr;  // null: there is none. Its borders are not zeros
  int64_t channels = 0;
};

// output = act(bias + residual + sum over sources of their convolutions), of 1x1 or 3x3 pixels, stride 1 or 2.
struct TiledConvolution {
  int sources = 0;
  Bordered source[kMaxSources];  // `high` is read
  const char* weight[kMaxSources] = {};  // as pack_tiles lays it out
  Bordered residual, output;  // of the output's shape; residual.high null: absent
  const float* bias = nullptr;  // [c_out]
  int64_t n = 0, c_out = 0;
  Extent in, out;
  int kernel = 3, stride = 1;
  bool relu = false;
};

// output = act(bias + sum of the inputs, smaller ones interpolated), or the projection of that. Inputs of the same size
// may have a weight.
struct TiledExchange {
  int count = 0;
  Bordered input[kMaxInputs];
  Extent size[kMaxInputs];
  const char* weight[kMaxInputs] = {};
  const float* bias = nullptr;
  const char* projection = nullptr;
  const float* projection_bias = nullptr;
  Bordered output;
  int64_t n = 0, channels = 0;  // before the projection
  Extent out;
  Mode mode = Mode::kBilinear;
  bool relu = false;
};

// bordered[n, h, w, c] = planar[n, c, h, w] * scale[c] + shift[c].
struct Reorder {
  Planes from;
  Bordered to;
  const float *scale = nullptr, *shift = nullptr;  // null: 1 and 0
  int64_t n = 0;
  Extent size;
};

// planar[n, c, h, w] = bordered[n, h, w, c], in bfloat16.
struct Restore {
  Bordered from;
  Planes to;
  int64_t n = 0;
  Extent size;
};

// Output channels in groups that are in the registers together: two tiles, at the end three, or one alone.
struct TileGroups {
  int64_t tiles;
  explicit TileGroups(int64_t c_out) : tiles((c_out + 15) / 16) {}
  int64_t count() const { return tiles < 2 ? 1 : tiles / 2; }
  int64_t first(int64_t group) const { return 2 * group; }
  int width(int64_t group) const { return static_cast<int>(group + 1 < count() ? 2 : tiles - first(group)); }
};
// Tiles of weights that one tile of output channels takes of a source.
inline int64_t tile_steps(int64_t c_in, int kernel) { return kernel * ((kernel * c_in + kTileDepth - 1) / kTileDepth); }

// Bytes of a packed weight of one source; the packing of weight [c_out, c_in, kernel, kernel]:
// [group][kernel row][32 taps][tile of the group][pair of taps][output channel][2].
int64_t tiled_weight_bytes(int64_t c_out, int64_t c_in, int kernel);
void pack_tiles(const float* weight, int64_t c_out, int64_t c_in, int kernel, char* packed);

// What one instruction set has for tasks on tiles; begin() and end() around them, once for each thread.
struct TiledKernels {
  void (*begin)();
  void (*end)();
  // rows y0 .. y1 - 1 of an image, groups first .. last - 1 of the output channels
  void (*convolve)(const TiledConvolution& q, int64_t image, int64_t y0, int64_t y1, int64_t first, int64_t last);
  void (*exchange)(const TiledExchange& q, int64_t image, int64_t y0, int64_t y1);
  void (*reorder)(const Reorder& q, int64_t image, int64_t y0, int64_t y1);
  void (*restore)(const Restore& q, int64_t image, int64_t y0, int64_t y1);
};
extern const TiledKernels tiled_amx;
extern const TiledKernels tiled_emulated;  // the same sums in the same order, for tests on every machine

}  // namespace hrnet_fast
