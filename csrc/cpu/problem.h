// What one exchange asks of the CPU kernels, in plain data: no torch header is included below this line of the tree, so
// that the files compiled for one instruction set cannot leak their code into inline functions that others share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../types.h"

namespace hrnet_fast {

struct Matrix {  // a 1x1 convolution's weight [rows = output channels, cols = input channels]; data null: absent
  const void* data = nullptr;
  int64_t rows = 0, cols = 0;
  int64_t row_stride = 0, col_stride = 0;  // in elements
};

struct Vector {  // a bias [size]; data null: absent
  const void* data = nullptr;
  int64_t size = 0, stride = 0;
};

struct Image {  // [N, C, H, W] with any strides, in elements
  const void* data = nullptr;
  int64_t n = 0, c = 0, h = 0, w = 0;
  int64_t sn = 0, sc = 0, sh = 0, sw = 0;
};

struct Problem {
  int count = 0;
  Image input[kMaxInputs];
  Matrix weight[kMaxInputs];
  Vector bias;
  Matrix projection;
  Vector projection_bias;
  Image output;  // dense, channels innermost where channels_last
  bool channels_last = false;
  int64_t channels = 0;  // C_out of the exchange, before the projection
  Mode mode = Mode::kBilinear;
  bool relu = true;
  DType dtype = DType::kFloat32;
};

// The gradient of the exchange's inputs without weights. All tensors are dense and in one layout.
struct BackwardProblem {
  const void* grad = nullptr;  // of the output [n, c, h, w]
  const void* output = nullptr;  // as the ReLU left it; null: there was no ReLU
  void* same = nullptr;  // gets the gradient of same-size inputs: grad, masked; null: not wanted
  int64_t n = 0, c = 0, h = 0, w = 0;
  struct Low {  // gets the gradient of an input [n, c, h, w]
    void* data;
    int64_t h, w;
  } low[kMaxInputs];
  int count = 0;
  bool channels_last = false;
  Mode mode = Mode::kBilinear;
  DType dtype = DType::kFloat32;
};

// BatchNorm and ReLU over x [pixels, channels], dense; statistics and parameters [channels] in the type of the sums:
// float, or double for float64.
struct NormProblem {
  const void* x = nullptr;
  int64_t pixels = 0, channels = 0;
  struct Segment {  // channels [begin, begin + width), as a tensor [pixels, width] of its own
    int64_t begin, width;
    bool relu;
    void* out;  // forward
    const void* grad;  // backward
  } segment[kMaxInputs];
  int segments = 0;
  const void *weight = nullptr, *bias = nullptr;
  void *mean = nullptr, *var = nullptr;  // of the batch, which the forward computes, or given
  double eps = 0;
  bool batch = true;
  void *d_x = nullptr, *d_weight = nullptr, *d_bias = nullptr;  // backward
  DType dtype = DType::kFloat32;
};

// The class of every pixel: argmax over the channels of scores that are interpolated to h x w.
enum class Label { kUInt8, kInt32, kInt64 };
struct ArgmaxProblem {
  Image scores;
  void* out = nullptr;  // [n, h, w], dense
  int64_t h = 0, w = 0;
  Label label = Label::kInt64;
  Mode mode = Mode::kBilinear;
  DType dtype = DType::kFloat32;
};

// Defined once, outside the files for one instruction set.
using Body = void (*)(int64_t begin, int64_t end, void* context);
void parallel_for(int64_t count, int64_t grain, Body body, void* context);  // torch's thread pool
int num_threads();
// A buffer of the calling thread, 64-byte aligned, kept between calls: fresh pages would cost more than the kernels.
void* scratch(int slot, size_t bytes);

}  // namespace hrnet_fast
