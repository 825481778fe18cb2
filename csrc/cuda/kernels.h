// The kernels: a block of threads computes a tile of one of several outputs.
#pragma once

#include "sum.h"

namespace hrnet_fast {
namespace cuda {

HRNET_FAST_DEVICE const Output& output_of(const Launch& launch, unsigned block) {
  int i = 0;
  while (i + 1 < launch.count && block >= launch.output[i + 1].first_block) ++i;
  return launch.output[i];
}

// Channels innermost: products of all inputs with a weight into shared memory, then the sums.
template <class Product>
HRNET_FAST_KERNEL(kTileThreads, 2)
exchange_channels_last(HRNET_FAST_PARAMETER Launch launch) {
  using T = typename Product::Element;
  const Output& q = output_of(launch, block());
  const Tile t = tile_of(q, block() - q.first_block, kTileW);
  T* shared = static_cast<T*>(shared_memory());
  multiply_all<Product>(launch.mode, q, t, shared);
  barrier();
  constexpr int WIDEST = 16 / sizeof(T);
  switch (q.vector) {
    case 1: return sum_tile<T, 1>(launch.mode, launch.relu, q, t, shared);
    case 2: return sum_tile<T, 2>(launch.mode, launch.relu, q, t, shared);
    case 4: return sum_tile<T, 4>(launch.mode, launch.relu, q, t, shared);
    default: return sum_tile<T, WIDEST>(launch.mode, launch.relu, q, t, shared);
  }
}

// Columns innermost: inputs without weights only.
template <class T>
HRNET_FAST_KERNEL(kMaxThreads, 2)
exchange_planar(HRNET_FAST_PARAMETER Launch launch) {
  const Output& q = output_of(launch, block());
  const Tile t = tile_of(q, block() - q.first_block, kPlanarTileW);
  const int c = t.c + thread() / kPlanarTileW, x = t.x + thread() % kPlanarTileW;
  if (c < q.channels && x < q.w)
    sum_column<T, 1, true>(launch.mode, launch.relu, q, t, c, t.y, x, static_cast<const T*>(nullptr));
}

}  // namespace cuda
}  // namespace hrnet_fast
