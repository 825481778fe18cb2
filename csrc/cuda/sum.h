// Four taps of every smaller input, from shared memory where it has a weight, same-size inputs, bias and ReLU.
//
// A thread walks down the rows of a tile in one column. The source rows change only every few output rows; interpolated
// across, two of them wait in registers: at factor 8 that is 6 loads for 8 rows in place of 32.
#pragma once

#include "products.h"

namespace hrnet_fast {
namespace cuda {

template <class T, int V, class Function>
HRNET_FAST_DEVICE void for_each(const T* at, Function&& function) {
  const auto x = *reinterpret_cast<const Vector<T, V>*>(at);
#pragma unroll
  for (int i = 0; i < V; ++i) function(i, to_float(x.v[i]));
}

// A row of an image or of a patch: the elements of a thread's two source columns.
struct Columns {
  int64_t left, right;
};

// sum[r] += the input at row first_y + r. `row_pitch` elements from row to row; `first_row` is where `rows` begins.
template <class T, int V, int ROWS>
HRNET_FAST_DEVICE void add_upsampled(Mode mode, bool single, const Input& in, const Output& q, int first_y,
                                     const T* rows, int64_t row_pitch, int first_row, const Columns& at, float w0,
                                     float w1, float (&sum)[ROWS][V]) {
  float upper[V], lower[V];
  int upper_row = -1, lower_row = -1;
  const auto across = [&](int row, float (&to)[V]) {
    const T* p = rows + (row - first_row) * row_pitch;
    if (single) {
      for_each<T, V>(p + at.left, [&](int i, float x) { to[i] = x; });
    } else {
      for_each<T, V>(p + at.left, [&](int i, float x) { to[i] = w0 * x; });
      for_each<T, V>(p + at.right, [&](int i, float x) { to[i] += w1 * x; });
    }
  };
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const auto s = source_in(mode, smaller(first_y + r, q.h - 1), in.row_scale, in.h, q.h);
    if (s.i0 != upper_row) {
      if (s.i0 == lower_row) {
#pragma unroll
        for (int i = 0; i < V; ++i) upper[i] = lower[i];
      } else {
        across(s.i0, upper);
      }
      upper_row = s.i0;
    }
    if (single) {
#pragma unroll
      for (int i = 0; i < V; ++i) sum[r][i] += upper[i];
      continue;
    }
    if (s.i1 != lower_row) {
      if (s.i1 == upper_row) {
#pragma unroll
        for (int i = 0; i < V; ++i) lower[i] = upper[i];
      } else {
        across(s.i1, lower);
      }
      lower_row = s.i1;
    }
#pragma unroll
    for (int i = 0; i < V; ++i) sum[r][i] += s.w0 * upper[i] + s.w1 * lower[i];
  }
}

// V channels from c on in column x, rows_per_thread(V) rows from y on.
template <class T, int V, bool PLANAR>
HRNET_FAST_DEVICE void sum_column(Mode mode, bool relu, const Output& q, const Tile& t, int c, int y, int x,
                                  const T* shared) {
  constexpr int ROWS = rows_per_thread(V);
  const auto offset = [](int channel, int row, int column, int channels, int h, int w) {
    return PLANAR ? planar_offset(channel, row, column, h, w) : channels_last_offset(channel, row, column, channels, w);
  };
  const int rows = smaller(ROWS, q.h - y);
  float sum[ROWS][V] = {};
  if (q.bias != nullptr) {
    for_each<T, V>(static_cast<const T*>(q.bias) + c, [&](int i, float b) {
#pragma unroll
      for (int r = 0; r < ROWS; ++r) sum[r][i] = b;
    });
  }
  for (int j = 0; j < q.count; ++j) {
    const Input& in = q.input[j];
    const T* image = static_cast<const T*>(in.data) + image_offset(t.n, in.k, in.h, in.w);
    if (in.weight == nullptr && in.h == q.h && in.w == q.w) {
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
        if (r < rows)
          for_each<T, V>(image + offset(c, y + r, x, in.k, in.h, in.w), [&](int i, float a) { sum[r][i] += a; });
      continue;
    }
    const auto s = source_in(mode, x, in.column_scale, in.w, q.w);
    const bool single = is_single(mode, in, q);
    if (in.weight == nullptr) {
      const Columns at = {offset(c, 0, s.i0, in.k, in.h, in.w), offset(c, 0, s.i1, in.k, in.h, in.w)};
      const int64_t row_pitch = PLANAR ? in.w : static_cast<int64_t>(in.w) * in.k;
      add_upsampled<T, V, ROWS>(mode, single, in, q, y, image, row_pitch, 0, at, s.w0, s.w1, sum);
    } else if (!PLANAR) {
      const Patch p = patch_of(mode, in, q, t);
      const Columns at = {(s.i0 - p.x) * q.pitch + c - t.c, (s.i1 - p.x) * q.pitch + c - t.c};
      add_upsampled<T, V, ROWS>(mode, single, in, q, y, shared + in.patch, p.columns * q.pitch, p.y, at, s.w0, s.w1,
                                sum);
    }
  }
  T* to = static_cast<T*>(q.data) + image_offset(t.n, q.channels, q.h, q.w);
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    if (r >= rows) continue;
    Vector<T, V> result;
#pragma unroll
    for (int i = 0; i < V; ++i) result.v[i] = from_float<T>(relu && sum[r][i] <= 0.f ? 0.f : sum[r][i]);  // NaN stays
    *reinterpret_cast<Vector<T, V>*>(to + offset(c, y + r, x, q.channels, q.h, q.w)) = result;
  }
}

template <class T, int V>
HRNET_FAST_DEVICE void sum_tile(Mode mode, bool relu, const Output& q, const Tile& t, const T* shared) {
  const int vectors = smaller(q.channel_block, q.channels - t.c) / V;
  for (int item = thread(); item < vectors * kTileW * (kTileH / rows_per_thread(V)); item += threads()) {
    const int column = item / vectors, x = t.x + column % kTileW, y = t.y + column / kTileW * rows_per_thread(V);
    if (x < q.w && y < q.h) sum_column<T, V, false>(mode, relu, q, t, t.c + item % vectors * V, y, x, shared);
  }
}

}  // namespace cuda
}  // namespace hrnet_fast
