// Kernels for x86-64 with AVX-512 (F, BW, DQ, VL).
#include "../isa.h"

HRNET_FAST_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
namespace hrnet_fast {
namespace avx512 {
#include "vec_avx512.h"
#include "../exchange_impl.h"
#include "../every_dtype.h"
#include "quads_avx512.h"
#include "../convolve_impl.h"

static constexpr Kernels all() {
  Kernels k = EveryDType<VecAvx512, VecGeneric<double, 8>>::kernels();
  k.convolve = Convolve<QuadsAvx512>::run, k.costs = &QuadsAvx512::kCosts;
  return k;
}
extern constexpr Kernels kernels = all();
}  // namespace avx512
}  // namespace hrnet_fast
HRNET_FAST_TARGET_END
