// What one launch is asked to do, in plain data that is passed to the kernel by value.
#pragma once

#include <cstdint>

#include "../types.h"

namespace hrnet_fast {
namespace cuda {

constexpr int kMaxOutputs = 4;

struct Input {
  const void* data;    // [n, k, h, w], dense, in the layout of the output
  const void* weight;  // [channels, k] or null: k is the output's channels then
  int h, w, k;
  float row_scale, column_scale;  // source pixels per output pixel
  int patch;                      // where the product of a tile begins in shared memory, in elements
};

struct Output {
  void* data;        // [n, channels, h, w]
  const void* bias;  // [channels] or null
  Input input[kMaxInputs];
  int count;
  int n, channels, h, w;
  int tiles_y, tiles_x;
  int channel_block, channel_blocks;  // channels that a block of threads computes, and in how many blocks
  int vector;                         // channels that a thread loads at once: 1, 2, 4 or 8
  int pitch;                          // elements from one pixel to the next in shared memory
  unsigned first_block;               // of the grid
};

struct Launch {
  Output output[kMaxOutputs];
  int count;
  Mode mode;
  bool relu;
};

// The gradient of inputs without weights: the transposed interpolation of the gradient behind the ReLU.
struct Target {
  void* data;  // gets the gradient of an input [n, channels, h, w]
  int h, w;
  float row_scale, column_scale;   // source pixels per output pixel
  int row_window, column_window;   // the most output rows and columns that read one source pixel
  unsigned first_block;            // of the grid
  int64_t items;                   // threads with work
};

struct BackwardLaunch {
  const void* grad;    // [n, channels, h, w]; all tensors are dense and in one layout
  const void* output;  // as the ReLU left it, or null: there was no ReLU
  Target target[kMaxInputs + 1];
  int count;
  int n, channels, h, w;
  int vector;  // channels that a thread loads at once
  Mode mode;
};

}  // namespace cuda
}  // namespace hrnet_fast
