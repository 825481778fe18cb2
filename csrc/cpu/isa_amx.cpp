// The exchange for x86-64 with AMX-BF16 (on top of AVX512-BF16): bfloat16 products on tiles.
#include <utility>

#include "isa.h"
#include "tiled.h"

#ifdef HRNET_FAST_X86
#define HRNET_FAST_HAS_BF16_INSTRUCTIONS
HRNET_FAST_TARGET_BEGIN("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
namespace hrnet_fast {
namespace amx {
#include "vec_avx512.h"
#include "exchange_impl.h"
#include "tiles_amx.h"
#include "products_amx.h"
#include "convolve_common.h"
#include "tiled_impl.h"
}  // namespace amx

void exchange_amx(const Problem& q) {
  using namespace amx;
  if (q.dtype != DType::kBFloat16 || !q.channels_last) return exchange_avx512_bf16(q);
  ChannelsLast<VecAvx512, BFloat16, AmxProducts<VecAvx512, BFloat16>>::run(q);
}

const TiledKernels tiled_amx = amx::TiledTasks<amx::TileBlocks<amx::AmxTiles>, amx::VecAvx512>::kernels;

}  // namespace hrnet_fast
HRNET_FAST_TARGET_END
#endif
