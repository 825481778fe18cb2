// The 1x1 convolution of a low-resolution patch into shared memory: a matrix product [pixels, k] x [k, channels].
//
// Neither operand is staged: a lane loads PER consecutive input channels of its pixels and of its weight rows straight
// into the registers of the matrix instruction. Which k a lane holds does not matter as long as both operands agree.
#pragma once

#include <cstring>

#ifdef __CUDACC__
#include "device.h"
#else
#include <device_on_host.h>
#endif
#include "geometry.h"

namespace hrnet_fast {
namespace cuda {

template <class T, int V>
struct alignas(sizeof(T) * V) Vector {
  T v[V];
};

template <class T, int V>
HRNET_FAST_DEVICE uint32_t pair(const Vector<T, V>& x, int i) {
  static_assert(sizeof(T) == 2, "two 16-bit elements");
  uint32_t bits;
  memcpy(&bits, &x.v[2 * i], sizeof(bits));
  return bits;
}

// Each product adds upper and lower, PER input channels of the pixels lane / 4 and lane / 4 + 8, times rows of the
// weight, to a fragment: channels 2 (lane % 4) and the next one, first of the upper pixel, then of the lower one.
template <class T>
struct Halves {
  using Element = T;
  static constexpr int kPixels = 32;     // that a warp multiplies at once
  static constexpr int kSteps = 2;       // of 16 bytes a lane, whose loads come together
  static constexpr int kLanes = 4;       // that share a pixel and divide its input channels
  static constexpr int kWeightRows = 1;  // that a lane loads for 8 channels
  static HRNET_FAST_DEVICE int weight_row(int lane, int) { return lane / 4; }
  template <int PER>
  static HRNET_FAST_DEVICE void add(float (&d)[4], const Vector<T, PER>& upper, const Vector<T, PER>& lower,
                                    const Vector<T, PER> (&weight)[1]) {
#pragma unroll
    for (int s = 0; s < PER / 2; s += 2) {
      const uint32_t a[4] = {pair(upper, s), pair(lower, s), pair(upper, s + 1), pair(lower, s + 1)};
      const uint32_t b[2] = {pair(weight[0], s), pair(weight[0], s + 1)};
      multiply_add(d, a, b, T());
    }
  }
};

struct Tf32 {
  using Element = float;
  static constexpr int kPixels = 32, kSteps = 2, kLanes = 4, kWeightRows = 1;
  static HRNET_FAST_DEVICE int weight_row(int lane, int) { return lane / 4; }
  template <int PER>
  static HRNET_FAST_DEVICE void add(float (&d)[4], const Vector<float, PER>& upper, const Vector<float, PER>& lower,
                                    const Vector<float, PER> (&weight)[1]) {
#pragma unroll
    for (int s = 0; s < PER; s += 2) {
      const float a[4] = {upper.v[s], lower.v[s], upper.v[s + 1], lower.v[s + 1]};
      const float b[2] = {weight[0].v[s], weight[0].v[s + 1]};
      multiply_add(d, a, b);
    }
  }
};

struct Ieee {  // float32 without tensor cores
  using Element = float;
  static constexpr int kPixels = 32, kSteps = 1, kLanes = 1, kWeightRows = 2;
  static HRNET_FAST_DEVICE int weight_row(int lane, int i) { return lane % 4 * 2 + i; }
  template <int PER>
  static HRNET_FAST_DEVICE void add(float (&d)[4], const Vector<float, PER>& upper, const Vector<float, PER>& lower,
                                    const Vector<float, PER> (&weight)[2]) {
#pragma unroll
    for (int s = 0; s < PER; ++s) {
      d[0] += upper.v[s] * weight[0].v[s];
      d[1] += upper.v[s] * weight[1].v[s];
      d[2] += lower.v[s] * weight[0].v[s];
      d[3] += lower.v[s] * weight[1].v[s];
    }
  }
};

// PER elements of a row from k on, zeros behind its end. ALIGNED: the row and its length allow one load.
template <bool ALIGNED, int PER, class T>
HRNET_FAST_DEVICE Vector<T, PER> load_row(const T* row, int k, int length) {
  Vector<T, PER> x;
#pragma unroll
  for (int i = 0; i < PER; ++i) x.v[i] = from_float<T>(0.f);
  if (ALIGNED) {
    if (k < length) x = *reinterpret_cast<const Vector<T, PER>*>(row + k);
  } else {
#pragma unroll
    for (int i = 0; i < PER; ++i)
      if (k + i < length) x.v[i] = row[k + i];
  }
  return x;
}

// One warp: 16 * M pixels from `first_pixel` on, 24 channels from `first_channel` of the block on.
//
// All loads of STEPS steps come before their products, without a branch in between: the wait for memory, and not the
// products, is what a small patch takes. STEPS * M is the same for all patches, and so are the registers.
template <class Product, int M, int STEPS, int PER, bool ALIGNED>
HRNET_FAST_DEVICE void multiply(const Input& in, const Output& q, const Tile& t, const Patch& p, int first_pixel,
                                int first_channel, typename Product::Element* patch) {
  using T = typename Product::Element;
  constexpr int N = kProductColumns / 8, LANES = Product::kLanes, WEIGHT_ROWS = Product::kWeightRows;
  const int lane = thread() % 32, pixels = p.rows * p.columns;
  const T* image = static_cast<const T*>(in.data) + image_offset(t.n, in.k, in.h, in.w);
  const T* pixel_row[2 * M];  // those behind the end of the patch repeat its last pixel
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
    const int pixel = smaller(first_pixel + i * 8 + lane / 4, pixels - 1);
    pixel_row[i] = image + channels_last_offset(0, p.y + pixel / p.columns, p.x + pixel % p.columns, in.k, in.w);
  }
  const T* weight_row[N][WEIGHT_ROWS];
#pragma unroll
  for (int j = 0; j < N; ++j)
#pragma unroll
    for (int i = 0; i < WEIGHT_ROWS; ++i) {
      const int c = smaller(t.c + first_channel + 8 * j + Product::weight_row(lane, i), q.channels - 1);
      weight_row[j][i] = static_cast<const T*>(in.weight) + static_cast<int64_t>(c) * in.k;
    }
  float d[M][N][4] = {};
#pragma unroll 1
  for (int first = lane % LANES * PER; first - lane % LANES * PER < in.k; first += PER * LANES * STEPS) {
    Vector<T, PER> a[STEPS][2 * M], b[STEPS][N][WEIGHT_ROWS];
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
      const int k = first + s * PER * LANES;
#pragma unroll
      for (int i = 0; i < 2 * M; ++i) a[s][i] = load_row<ALIGNED, PER>(pixel_row[i], k, in.k);
#pragma unroll
      for (int j = 0; j < N; ++j)
#pragma unroll
        for (int i = 0; i < WEIGHT_ROWS; ++i) b[s][j][i] = load_row<ALIGNED, PER>(weight_row[j][i], k, in.k);
    }
#pragma unroll
    for (int s = 0; s < STEPS; ++s)
#pragma unroll
      for (int i = 0; i < M; ++i)
#pragma unroll
        for (int j = 0; j < N; ++j) Product::add(d[i][j], a[s][2 * i], a[s][2 * i + 1], b[s][j]);
  }
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
    const int pixel = first_pixel + i * 8 + lane / 4;
    if (pixel >= pixels) continue;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const int c = first_channel + 8 * j + lane % 4 * 2;
      if (c >= q.channel_block) continue;
      const float* z = d[i / 2][j] + i % 2 * 2;
      *reinterpret_cast<Vector<T, 2>*>(patch + pixel * q.pitch + c) = {{from_float<T>(z[0]), from_float<T>(z[1])}};
    }
  }
}

// As many pixels as there are, in one of the two shapes of a warp.
template <class Product, int PER, bool ALIGNED>
HRNET_FAST_DEVICE void multiply(const Input& in, const Output& q, const Tile& t, const Patch& p, int first_pixel,
                                int first_channel, typename Product::Element* patch) {
  static_assert(Product::kPixels == 32, "two fragments of pixels, or one");
  constexpr int WIDE = 16 / sizeof(typename Product::Element), STEPS = ALIGNED ? Product::kSteps * WIDE / PER : 1;
  if (p.rows * p.columns - first_pixel > 16)
    multiply<Product, 2, STEPS, PER, ALIGNED>(in, q, t, p, first_pixel, first_channel, patch);
  else
    multiply<Product, 1, 2 * STEPS, PER, ALIGNED>(in, q, t, p, first_pixel, first_channel, patch);
}

// All products of a tile, shared out among the warps of the block.
template <class Product>
HRNET_FAST_DEVICE void multiply_all(Mode mode, const Output& q, const Tile& t, typename Product::Element* shared) {
  using T = typename Product::Element;
  constexpr int WIDE = 16 / sizeof(T), NARROW = 4;
  const int columns = ceil_div(smaller(q.channel_block, q.channels - t.c), kProductColumns);
  int task = thread() / 32;
  for (int j = 0; j < q.count; ++j) {
    const Input& in = q.input[j];
    if (in.weight == nullptr) continue;
    const Patch p = patch_of(mode, in, q, t);
    const int tasks = ceil_div(p.rows * p.columns, Product::kPixels) * columns;
    for (; task < tasks; task += threads() / 32) {
      const int pixel = task / columns * Product::kPixels, channel = task % columns * kProductColumns;
      if (in.k % WIDE == 0)
        multiply<Product, WIDE, true>(in, q, t, p, pixel, channel, shared + in.patch);
      else if (in.k % NARROW == 0)
        multiply<Product, NARROW, true>(in, q, t, p, pixel, channel, shared + in.patch);
      else
        multiply<Product, NARROW, false>(in, q, t, p, pixel, channel, shared + in.patch);
    }
    task -= tasks;
  }
}

}  // namespace cuda
}  // namespace hrnet_fast
