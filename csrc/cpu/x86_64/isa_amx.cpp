// Kernels for x86-64 with AMX-BF16 and AMX-INT8 (on top of AVX512-BF16): products on tiles.
#include "../isa.h"

#define HRNET_FAST_HAS_BF16_INSTRUCTIONS
namespace hrnet_fast {
namespace avx512_bf16 {
extern const Kernels kernels;
}
}  // namespace hrnet_fast

HRNET_FAST_TARGET_BEGIN("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
namespace hrnet_fast {
namespace amx {
#include "vec_avx512.h"
#include "../exchange_impl.h"
#include "tiles_amx.h"
#include "products_amx.h"
#include "../convolve_common.h"
#include "../tiled_impl.h"

static void exchange(const Problem& q) {
  if (q.dtype != DType::kBFloat16 || !q.channels_last) return avx512_bf16::kernels.exchange(q);
  ChannelsLast<VecAvx512, BFloat16, AmxProducts<VecAvx512, BFloat16>>::run(q);
}

static constexpr Kernels all() {
  Kernels k;
  k.exchange = exchange;
  k.tiled = k.tiled_bfloat16 = &TiledTasks<TileBlocks<AmxTiles>, VecAvx512>::kernels;
  return k;
}
extern constexpr Kernels kernels = all();
}  // namespace amx
}  // namespace hrnet_fast
HRNET_FAST_TARGET_END
