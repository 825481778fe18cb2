// Kernels for x86-64 with AVX2 with FMA and F16C (2013 and later).
#include "../isa.h"

HRNET_FAST_TARGET_BEGIN("avx2,fma,f16c")
namespace hrnet_fast {
namespace avx2 {
#include "vec_avx2.h"
#include "../exchange_impl.h"
#include "../every_dtype.h"
#include "quads_avx2.h"
#include "../convolve_impl.h"

static constexpr Kernels all() {
  Kernels k = EveryDType<VecAvx2, VecGeneric<double, 4>>::kernels();
  k.convolve = Convolve<QuadsAvx2>::run, k.costs = &QuadsAvx2::kCosts;
  return k;
}
extern constexpr Kernels kernels = all();
}  // namespace avx2
}  // namespace hrnet_fast
HRNET_FAST_TARGET_END
