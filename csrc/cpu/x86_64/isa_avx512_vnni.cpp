// Products of bytes for x86-64 with AVX512-VNNI (Cascade Lake, Ice Lake, Zen 4 and later).
#include "../isa.h"

HRNET_FAST_TARGET_BEGIN("avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
namespace hrnet_fast {
namespace avx512_vnni {
#include "vec_avx512.h"
#include "../exchange_impl.h"
#include "../convolve_common.h"
#include "../tiled_impl.h"
#include "../vector_blocks.h"
#include "dots_avx512.h"

static constexpr Kernels all() {
  Kernels k;
  k.tiled = &TiledTasks<VectorBlocks<DotsAvx512>, VecAvx512>::kernels;
  return k;
}
extern constexpr Kernels kernels = all();
}  // namespace avx512_vnni
}  // namespace hrnet_fast
HRNET_FAST_TARGET_END
