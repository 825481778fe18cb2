// Products of bytes for x86-64 with AVX2 alone: exact, and no faster than those of float32.
#include <utility>

#include "isa.h"
#include "tiled.h"

#ifdef HRNET_FAST_X86
HRNET_FAST_TARGET_BEGIN("avx2,fma,f16c")
namespace hrnet_fast {
namespace avx2_bytes {
#include "vec_avx2.h"
#include "exchange_impl.h"
#include "convolve_common.h"
#include "tiled_impl.h"
#include "vector_blocks.h"
#include "dots_avx2.h"
#include "vec_pair.h"
}  // namespace avx2_bytes

const TiledKernels tiled_avx2 = avx2_bytes::TiledTasks<avx2_bytes::VectorBlocks<avx2_bytes::DotsAvx2>,
                                                       avx2_bytes::VecPair<avx2_bytes::VecAvx2>>::kernels;

}  // namespace hrnet_fast
HRNET_FAST_TARGET_END
#endif
