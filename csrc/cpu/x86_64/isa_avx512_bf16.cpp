// Kernels for x86-64 with AVX512-BF16: bfloat16 products two channels a step.
#include "../isa.h"

#define HRNET_FAST_HAS_BF16_INSTRUCTIONS
namespace hrnet_fast {
namespace avx512 {
extern const Kernels kernels;
}
}  // namespace hrnet_fast

HRNET_FAST_TARGET_BEGIN("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
namespace hrnet_fast {
namespace avx512_bf16 {
#include "vec_avx512.h"
#include "../exchange_impl.h"
#include "quads_avx512.h"
#include "../convolve_impl.h"

static void exchange(const Problem& q) {
  if (q.dtype != DType::kBFloat16) return avx512::kernels.exchange(q);
  if (q.channels_last)
    ChannelsLast<VecAvx512, BFloat16, DotProducts<VecAvx512, BFloat16>>::run(q);
  else
    Planar<VecAvx512, BFloat16>::run(q);
}

static constexpr Kernels all() {
  Kernels k;
  k.exchange = exchange;
  k.convolve = Convolve<QuadsAvx512>::run, k.costs = &QuadsAvx512::kCosts, k.pairs = true;
  return k;
}
extern constexpr Kernels kernels = all();
}  // namespace avx512_bf16
}  // namespace hrnet_fast
HRNET_FAST_TARGET_END
