// The backward of the exchange: every low-resolution pixel sums over its own window of the gradient, in a fixed order
// and in float32, so that there are no atomics and every run gives the same bits.
//
// A thread walks down the output rows that reach kTargetRows source rows of one column; the sum across a row is made
// once for the two source rows that share it.
#pragma once

#include "sum.h"

namespace hrnet_fast {
namespace cuda {

template <class T, int V, bool PLANAR>
HRNET_FAST_DEVICE void gather(const BackwardLaunch& q, const Target& t, int64_t index) {
  const TargetItem item = target_item(index, q, t, !PLANAR);
  const int64_t column_pitch = PLANAR ? 1 : q.channels, row_pitch = column_pitch * q.w;
  const int64_t begin = image_offset(item.n, q.channels, q.h, q.w) +
                        (PLANAR ? planar_offset(item.c, 0, 0, q.h, q.w) : static_cast<int64_t>(item.c));
  const T* grad = static_cast<const T*>(q.grad) + begin;
  const T* output = q.output == nullptr ? nullptr : static_cast<const T*>(q.output) + begin;
  const int rows = smaller(kTargetRows, t.h - item.y);
  const int first_y = first_output(q.mode, item.y, t.row_scale, t.h, q.h);
  const int last_y =
      smaller(first_output(q.mode, item.y + rows - 1, t.row_scale, t.h, q.h) + t.row_window, q.h);  // behind it
  const int first_x = first_output(q.mode, item.x, t.column_scale, t.w, q.w);
  const int last_x = smaller(first_x + t.column_window, q.w);
  float sum[kTargetRows][V] = {};
  for (int y = first_y; y < last_y; ++y) {
    float across[V] = {};
    for (int x = first_x; x < last_x; ++x) {
      const float weight = weight_of(source_in(q.mode, x, t.column_scale, t.w, q.w), item.x);
      if (weight <= 0.f) continue;  // an infinite gradient beside the window must not become NaN
      const int64_t at = y * row_pitch + x * column_pitch;
      const auto g = *reinterpret_cast<const Vector<T, V>*>(grad + at);
      if (output == nullptr) {
#pragma unroll
        for (int i = 0; i < V; ++i) across[i] += weight * to_float(g.v[i]);
      } else {
        const auto out = *reinterpret_cast<const Vector<T, V>*>(output + at);
#pragma unroll
        for (int i = 0; i < V; ++i) across[i] += to_float(out.v[i]) <= 0.f ? 0.f : weight * to_float(g.v[i]);
      }
    }
    const auto s = source_in(q.mode, y, t.row_scale, t.h, q.h);
#pragma unroll
    for (int r = 0; r < kTargetRows; ++r) {
      const float weight = weight_of(s, item.y + r);
      if (weight > 0.f) {
#pragma unroll
        for (int i = 0; i < V; ++i) sum[r][i] += weight * across[i];
      }
    }
  }
  T* to = static_cast<T*>(t.data) + image_offset(item.n, q.channels, t.h, t.w);
#pragma unroll
  for (int r = 0; r < kTargetRows; ++r) {
    if (r >= rows) continue;
    Vector<T, V> result;
#pragma unroll
    for (int i = 0; i < V; ++i) result.v[i] = from_float<T>(sum[r][i]);
    const int y = item.y + r;
    const int64_t at =
        PLANAR ? planar_offset(item.c, y, item.x, t.h, t.w) : channels_last_offset(item.c, y, item.x, q.channels, t.w);
    *reinterpret_cast<Vector<T, V>*>(to + at) = result;
  }
}

// Blocks of all targets run side by side and share the gradient in the cache.
template <class T, int V, bool PLANAR>
HRNET_FAST_KERNEL(kMaxThreads, 2)
exchange_backward(HRNET_FAST_PARAMETER BackwardLaunch launch) {
  int j = 0;
  while (j + 1 < launch.count && block() >= launch.target[j + 1].first_block) ++j;
  const Target& t = launch.target[j];
  const int64_t item = static_cast<int64_t>(block() - t.first_block) * kMaxThreads + thread();
  if (item < t.items) gather<T, V, PLANAR>(launch, t, item);
}

}  // namespace cuda
}  // namespace hrnet_fast
