// Kernels for aarch64, all of which have NEON. Products of bytes are exact, and no faster than those of float32.
#include "../isa.h"

namespace hrnet_fast {
namespace neon {
#include "vec_neon.h"
#include "../exchange_impl.h"
#include "../every_dtype.h"
#include "quads_neon.h"
#include "../convolve_impl.h"
#include "../tiled_impl.h"
#include "../vector_blocks.h"
#include "dots_neon.h"
#include "../vec_pair.h"

static constexpr Kernels all() {
  Kernels k = EveryDType<VecNeon, VecGeneric<double, 2>>::kernels();
  k.convolve = Convolve<QuadsNeon>::run, k.costs = &QuadsNeon::kCosts;
  k.tiled = &TiledTasks<VectorBlocks<DotsNeon>, VecPair<VecPair<VecNeon>>>::kernels;
  return k;
}
extern constexpr Kernels kernels = all();
}  // namespace neon
}  // namespace hrnet_fast
