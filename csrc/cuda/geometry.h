// Index arithmetic of the CUDA kernels: plain constexpr functions that are compiled and tested on the host as well.
#pragma once

#include "problem.h"

namespace hrnet_fast {
namespace cuda {

#include "../source.h"

constexpr int kTileH = 8;                // output rows of a block of threads
constexpr int kTileW = 16;               // output columns, with channels innermost in memory
constexpr int kPlanarTileW = 32;         // output columns, with columns innermost
constexpr int kMaxThreads = 256;         // of a block
constexpr int kTileThreads = 192;  // of a block with channels innermost: 48 channels of a tile, 8 by 4 rows each
constexpr int kMaxChannelBlock = 48;  // a multiple of 8
constexpr int kMaxShared = 48 << 10;  // bytes: what every GPU gives without being asked
constexpr int kProductColumns = 24;  // channels that a warp multiplies at once: two warps for 48, one for 18

HRNET_FAST_HOST_DEVICE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
HRNET_FAST_HOST_DEVICE constexpr int smaller(int a, int b) { return a < b ? a : b; }

struct Tile {
  int n, y, x, c;  // image, and first row, column and channel
};

// Channel blocks of one tile come one after the other: they read the same low-resolution pixels.
HRNET_FAST_HOST_DEVICE constexpr Tile tile_of(const Output& q, unsigned block, int tile_w) {
  const unsigned tile = block / q.channel_blocks, row = tile / q.tiles_x;
  return {static_cast<int>(row / q.tiles_y), static_cast<int>(row % q.tiles_y) * kTileH,
          static_cast<int>(tile % q.tiles_x) * tile_w, static_cast<int>(block % q.channel_blocks) * q.channel_block};
}

// Elements from the first one of an image [c, h, w]: more than 2^31 in large images.
HRNET_FAST_HOST_DEVICE constexpr int64_t channels_last_offset(int c, int y, int x, int channels, int w) {
  return (static_cast<int64_t>(y) * w + x) * channels + c;
}
HRNET_FAST_HOST_DEVICE constexpr int64_t planar_offset(int c, int y, int x, int h, int w) {
  return (static_cast<int64_t>(c) * h + y) * w + x;
}
HRNET_FAST_HOST_DEVICE constexpr int64_t image_offset(int n, int channels, int h, int w) {
  return static_cast<int64_t>(n) * channels * (static_cast<int64_t>(h) * w);
}

// The source of an output row or column. An input of the output's own size is taken as it is.
HRNET_FAST_HOST_DEVICE constexpr Source<float, int> source_in(Mode mode, int out, float scale, int in_size,
                                                              int out_size) {
  return in_size == out_size ? Source<float, int>{out, out, 1.f, 0.f} : source_at(mode, out, scale, in_size);
}

// Whether one source pixel is all of an output pixel: a second one with weight 0 would turn its Inf into NaN.
HRNET_FAST_HOST_DEVICE constexpr bool is_single(Mode mode, const Input& x, const Output& q) {
  return mode == Mode::kNearest || (x.h == q.h && x.w == q.w);
}

struct Patch {  // the pixels of an input that a tile of the output touches
  int y, x, rows, columns;
};

HRNET_FAST_HOST_DEVICE constexpr Patch patch_of(Mode mode, const Input& in, const Output& q, const Tile& t) {
  const int last_y = smaller(t.y + kTileH, q.h) - 1, last_x = smaller(t.x + kTileW, q.w) - 1;
  const int y = source_in(mode, t.y, in.row_scale, in.h, q.h).i0;
  const int x = source_in(mode, t.x, in.column_scale, in.w, q.w).i0;
  return {y, x, source_in(mode, last_y, in.row_scale, in.h, q.h).i1 - y + 1,
          source_in(mode, last_x, in.column_scale, in.w, q.w).i1 - x + 1};
}

// The most rows or columns that a patch can have: one tile's, a neighbour, and one for each rounding.
constexpr int max_patch(float scale, int tile, int in_size, int out_size) {
  if (in_size == out_size) return smaller(tile, in_size);
  return smaller(static_cast<int>(scale * static_cast<float>(tile - 1)) + 3, in_size);
}

// With 8 more than a multiple of 16, the lanes of a warp that store a product meet different banks.
constexpr int pitch_of(int channel_block) { return channel_block % 16 == 8 ? channel_block : channel_block + 8; }

// Channels of a block: at most `limit`, in blocks as even as can be, a multiple of 8.
constexpr int channel_block_of(int channels, int limit) {
  const int blocks = ceil_div(channels, limit);
  return ceil_div(ceil_div(channels, blocks), 8) * 8;
}

// Lays out shared memory for a channel block; returns its size in elements.
inline int place_patches(Output& q) {
  int used = 0;
  q.pitch = pitch_of(q.channel_block);
  for (int j = 0; j < q.count; ++j) {
    Input& x = q.input[j];
    if (x.weight == nullptr) continue;
    x.patch = used;
    used += max_patch(x.row_scale, kTileH, x.h, q.h) * max_patch(x.column_scale, kTileW, x.w, q.w) * q.pitch;
  }
  return used;
}

// Fills in what follows from the sizes. Returns the bytes of shared memory, and adds to the number of blocks.
inline int plan(Output& q, Mode mode, bool channels_last, int itemsize, int64_t& blocks) {
  for (int j = 0; j < q.count; ++j) {
    q.input[j].row_scale = source_scale<float>(mode, q.input[j].h, q.h);
    q.input[j].column_scale = source_scale<float>(mode, q.input[j].w, q.w);
  }
  q.tiles_y = ceil_div(q.h, kTileH);
  q.tiles_x = ceil_div(q.w, channels_last ? kTileW : kPlanarTileW);
  q.vector = 1;
  int shared = 0;
  if (channels_last) {
    while (q.vector * 2 * itemsize <= 16 && q.channels % (q.vector * 2) == 0) q.vector *= 2;
    for (int limit = kMaxChannelBlock; limit >= 8; limit -= 8) {
      q.channel_block = channel_block_of(q.channels, limit);
      shared = place_patches(q) * itemsize;
      if (shared <= kMaxShared) break;  // with 8 channels, 8 inputs fit even in float32
    }
  } else {
    q.channel_block = kMaxThreads / kPlanarTileW;
  }
  q.channel_blocks = ceil_div(q.channels, q.channel_block);
  q.first_block = static_cast<unsigned>(blocks);
  blocks += static_cast<int64_t>(q.n) * q.tiles_y * q.tiles_x * q.channel_blocks;
  return shared;
}

// Output rows that a thread computes: 8 channels take twice the registers.
HRNET_FAST_HOST_DEVICE constexpr int rows_per_thread(int vector) { return vector == 8 ? kTileH / 2 : kTileH; }

// Threads of a block, a multiple of 32: one for every column, vector of channels and group of rows.
constexpr int threads_of(const Output& q, bool channels_last) {
  if (!channels_last) return kMaxThreads;
  const int columns = kTileW * ceil_div(smaller(q.channel_block, q.channels), q.vector);
  const int items = columns * (kTileH / rows_per_thread(q.vector));
  return smaller(ceil_div(items, 32) * 32, kTileThreads);
}

struct Grid {
  int64_t blocks = 0;
  int threads = 32, shared = 0;  // of a block; shared in bytes
};

inline Grid plan(Launch& launch, bool channels_last, int itemsize) {
  Grid grid;
  for (int i = 0; i < launch.count; ++i) {
    const int shared = plan(launch.output[i], launch.mode, channels_last, itemsize, grid.blocks);
    const int threads = threads_of(launch.output[i], channels_last);
    grid.shared = shared > grid.shared ? shared : grid.shared;
    grid.threads = threads > grid.threads ? threads : grid.threads;
  }
  return grid;
}

constexpr int kTargetRows = 4;  // low-resolution rows that a thread of the backward computes

// An output position at or before the first one that reads the source `position`.
HRNET_FAST_HOST_DEVICE constexpr int first_output(Mode mode, int position, float scale, int in_size, int out_size) {
  if (in_size == out_size) return position;
  const float i = static_cast<float>(position), step = scale > 1e-30f ? scale : 1e-30f;  // 0: all outputs read it
  const float first = mode == Mode::kNearest    ? i / step
                      : mode == Mode::kBilinear ? (i - 0.5f) / step - 0.5f
                                                : (i - 1.f) / step;
  return first < 1.f ? 0 : static_cast<int>(first);
}

// How many outputs from first_output on can read one source position: less than 2 / scale do, one more for rounding the
// first one down, and one for the rounding of the division.
constexpr int output_window(float scale, int in_size, int out_size) {
  if (in_size == out_size) return 1;
  const float window = 2.f / (scale > 1e-30f ? scale : 1e-30f);
  return window >= static_cast<float>(out_size) ? out_size : smaller(static_cast<int>(window) + 3, out_size);
}

// With which weight an output position reads the source `position`.
HRNET_FAST_HOST_DEVICE constexpr float weight_of(const Source<float, int>& s, int position) {
  return (s.i0 == position ? s.w0 : 0.f) + (s.i1 == position ? s.w1 : 0.f);
}

struct TargetItem {
  int n, c, y, x;  // y: the first of kTargetRows rows
};

// Neighbouring threads read neighbouring elements.
HRNET_FAST_HOST_DEVICE constexpr TargetItem target_item(int64_t item, const BackwardLaunch& q, const Target& t,
                                                        bool channels_last) {
  const int vectors = q.channels / q.vector, groups = ceil_div(t.h, kTargetRows);
  const int inner = channels_last ? vectors : t.w, outer = channels_last ? t.w : vectors;
  const int i = static_cast<int>(item % inner);
  item /= inner;
  if (channels_last) {
    const int x = static_cast<int>(item % outer);
    item /= outer;
    return {static_cast<int>(item / groups), i * q.vector, static_cast<int>(item % groups) * kTargetRows, x};
  }
  const int y = static_cast<int>(item % groups) * kTargetRows;
  item /= groups;
  return {static_cast<int>(item / outer), static_cast<int>(item % outer), y, i};
}

inline Grid plan(BackwardLaunch& q, bool channels_last, int itemsize) {
  Grid grid;
  grid.threads = kMaxThreads;
  q.vector = 1;
  while (channels_last && q.vector * 2 * itemsize <= 16 && q.channels % (q.vector * 2) == 0) q.vector *= 2;
  for (int j = 0; j < q.count; ++j) {
    Target& t = q.target[j];
    t.row_scale = source_scale<float>(q.mode, t.h, q.h);
    t.column_scale = source_scale<float>(q.mode, t.w, q.w);
    t.row_window = output_window(t.row_scale, t.h, q.h);
    t.column_window = output_window(t.column_scale, t.w, q.w);
    t.items = static_cast<int64_t>(q.n) * (q.channels / q.vector) * ceil_div(t.h, kTargetRows) * t.w;
    t.first_block = static_cast<unsigned>(grid.blocks);
    grid.blocks += (t.items + kMaxThreads - 1) / kMaxThreads;
  }
  return grid;
}

}  // namespace cuda
}  // namespace hrnet_fast
