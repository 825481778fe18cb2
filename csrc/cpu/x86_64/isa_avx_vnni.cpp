// Products of bytes for x86-64 with AVX-VNNI (Alder Lake, Zen 5 and later).
#include "../isa.h"

#define HRNET_FAST_HAS_AVX_VNNI
HRNET_FAST_TARGET_BEGIN("avxvnni,avx2,fma,f16c")
namespace hrnet_fast {
namespace avx_vnni {
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
}  // namespace avx_vnni
}  // namespace hrnet_fast
HRNET_FAST_TARGET_END
