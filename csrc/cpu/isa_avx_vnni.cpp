// Products of bytes for x86-64 with AVX-VNNI (Alder Lake, Zen 5 and later).
#include <utility>

#include "isa.h"
#include "tiled.h"

#ifdef HRNET_FAST_X86
#define HRNET_FAST_HAS_AVX_VNNI
HRNET_FAST_TARGET_BEGIN("avxvnni,avx2,fma,f16c")
namespace hrnet_fast {
namespace avx_vnni {
#include "vec_avx2.h"
#include "exchange_impl.h"
#include "convolve_common.h"
#include "tiled_impl.h"
#include "vector_blocks.h"
#include "dots_avx2.h"
#include "vec_pair.h"
}  // namespace avx_vnni

const TiledKernels tiled_avx_vnni =
    avx_vnni::TiledTasks<avx_vnni::VectorBlocks<avx_vnni::DotsAvx2>, avx_vnni::VecPair<avx_vnni::VecAvx2>>::kernels;

}  // namespace hrnet_fast
HRNET_FAST_TARGET_END
#endif
