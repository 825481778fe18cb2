// Products of bytes for x86-64 with AVX512-VNNI (Cascade Lake, Ice Lake, Zen 4 and later).
#include <utility>

#include "isa.h"
#include "tiled.h"

#ifdef HRNET_FAST_X86
HRNET_FAST_TARGET_BEGIN("avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
namespace hrnet_fast {
namespace avx512_vnni {
#include "vec_avx512.h"
#include "exchange_impl.h"
#include "convolve_common.h"
#include "tiled_impl.h"
#include "vector_blocks.h"
#include "dots_avx512.h"
}  // namespace avx512_vnni

const TiledKernels tiled_avx512_vnni =
    avx512_vnni::TiledTasks<avx512_vnni::VectorBlocks<avx512_vnni::DotsAvx512>, avx512_vnni::VecAvx512>::kernels;

}  // namespace hrnet_fast
HRNET_FAST_TARGET_END
#endif
