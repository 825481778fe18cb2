// Products of bytes for aarch64 with the dot product (Cortex-A76, Neoverse N1, Apple M1 and later).
#include "../isa.h"
#include "target.h"

#define HRNET_FAST_HAS_DOTPROD
HRNET_FAST_TARGET_BEGIN(HRNET_FAST_DOTPROD_TARGET)
namespace hrnet_fast {
namespace neon_dotprod {
#include "vec_neon.h"
#include "../exchange_impl.h"
#include "../convolve_common.h"
#include "../tiled_impl.h"
#include "../vector_blocks.h"
#include "dots_neon.h"
#include "../vec_pair.h"

static constexpr Kernels all() {
  Kernels k;
  k.tiled = &TiledTasks<VectorBlocks<DotsNeon>, VecPair<VecPair<VecNeon>>>::kernels;
  return k;
}
extern constexpr Kernels kernels = all();
}  // namespace neon_dotprod
}  // namespace hrnet_fast
HRNET_FAST_TARGET_END
