// Products of bytes in AVX2 registers. Included inside the namespace of one instruction set, which may have AVX-VNNI.
#include "vec_avx2.h"
#include "../exchange_impl.h"
#include "../convolve_common.h"
#include "../tiled_impl.h"
#include "../vector_blocks.h"
#include "dots_avx2.h"
#include "../vec_pair.h"

static constexpr Kernels all() {
  Kernels k;
  k.tiled = &TiledTasks<VectorBlocks<DotsAvx2>, VecPair<VecAvx2>>::kernels;
  return k;
}
extern constexpr Kernels kernels = all();
