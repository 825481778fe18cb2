// What convolutions and exchanges on matrix tiles ask of the CPU kernels, in plain data, as in convolution.h.
//
// Images are in bfloat16 or in bytes with the channels of a pixel together, one pixel of zeros behind every row, and a
// row of zeros above and below. So the three taps of a kernel's row are 3 * channels neighbours, and sixteen output
// pixels are the rows of a tile, a constant number of bytes apart: tiles are loaded from the image itself, without a
// copy.
#pragma once

#include <cstdint>

#include "../checked.h"
#include "../types.h"
#include "convolution.h"
#include "half.h"

namespace hrnet_fast {

constexpr int64_t kTileBytes = 1024, kTileRow = 64;  // sixteen rows of 64 bytes
template <class T>
constexpr int64_t kTileDepth = kTileRow / static_cast<int64_t>(sizeof(T));  // factors of a row: bfloat16 or bytes
constexpr int64_t kMaxTiledSide = int64_t{1} << 24;  // of images, and their channels: what follows fits 64 bits

// Where the pixels of an image lie, in pixels.
struct Extent {
  int64_t h = 0, w = 0;
  int64_t pitch() const { return w + 1; }
  int64_t at(int64_t y, int64_t x) const { return (y + 1) * pitch() + x + 1; }
  int64_t pixels() const { return (h + 2) * pitch() + 1; }
  // Elements from one image to the next. What a tile reads behind an image is multiplied by weights of zero: it has to
  // be finite, so a tile's row of zeros lies there.
  int64_t image(int64_t channels) const { return pixels() * channels + kTileRow; }
  // Elements of n images, with those that tiles at the end read for rows that nobody looks at.
  int64_t span(int64_t n, int64_t channels) const {
    return checked_sum(checked_product(n, image(channels)), 34 * channels + 256);
  }
};

// An image in one or more forms: what is added reads `high` and `low`, what is multiplied reads `high` or `bytes`.
// Numbers of more than bfloat16 are a sum of two: `high` is the number rounded, `low` what the rounding took away.
struct Bordered {
  BFloat16* high = nullptr;  // null: there is none; the same for the others
  BFloat16* low = nullptr;  // its borders are not zeros
  uint8_t* bytes = nullptr;  // what Rounding makes of the numbers
  int64_t channels = 0;
};

// Numbers as integers from 0 to 255: number * per_unit + zero, rounded to the nearest, ties to even; NaN becomes 0.
struct Rounding {
  float per_unit = 1;
  uint8_t zero = 0;
};

// output = act(bias + residual + sum over sources of their convolutions), of 1x1 or 3x3 pixels, stride 1 or 2.
struct TiledConvolution {
  int sources = 0;
  Bordered source[kMaxSources];  // `high` is read, or `bytes` where there is a scale
  const char* weight[kMaxSources] = {};  // as pack_tiles lays it out, of the same type
  Bordered residual, output;  // of the output's shape; residual.high null: absent
  const float* bias = nullptr;  // [c_out]
  const float* scale = nullptr;  // [c_out], of sums of bytes
  Rounding rounding;  // of the output's bytes
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
  const float* scale = nullptr;  // of what the weights multiply, which then are bytes
  const char* projection = nullptr;  // multiplies bfloat16
  const float* projection_bias = nullptr;
  Bordered output;
  int64_t n = 0, channels = 0;  // before the projection
  Extent out;
  Mode mode = Mode::kBilinear;
  bool relu = false;
  Rounding rounding;
};

// bordered[n, h, w, c] = planar[n, c, h, w] * scale[c] + shift[c].
struct Reorder {
  Planes from;
  Bordered to;
  const float *scale = nullptr, *shift = nullptr;  // null: 1 and 0
  int64_t n = 0;
  Extent size;
  Rounding rounding;
};

// planar[n, c, h, w] = bordered[n, h, w, c], in bfloat16 or float32.
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
// Tiles of weights that one tile of output channels takes of a source, where factors have `size` bytes.
inline int64_t tile_steps(int64_t c_in, int kernel, int64_t size) {
  return kernel * ((kernel * c_in * size + kTileRow - 1) / kTileRow);
}

// Bytes of a packed weight of one source; the packing of weight [c_out, c_in, kernel, kernel]:
// [group][kernel row][taps of a tile's row][tile of the group][4 bytes of taps][output channel][the taps of 4 bytes].
int64_t tiled_weight_bytes(int64_t c_out, int64_t c_in, int kernel, int64_t size);
void pack_tiles(const float* weight, int64_t c_out, int64_t c_in, int kernel, char* packed);  // in bfloat16
void pack_tiles(const int8_t* weight, int64_t c_out, int64_t c_in, int kernel, char* packed);

// Where an interpolated pixel comes from. Compiled once: an instruction set of its own might round in other places.
struct SourcePixel {  // Source<float> of ../source.h
  int64_t i0, i1;
  float w0, w1;
};
SourcePixel source_pixel(Mode mode, int64_t out, int64_t in_size, int64_t out_size);

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
extern const TiledKernels tiled_emulated;  // the same sums in the same order, for tests on every machine

}  // namespace hrnet_fast
