// The exchange for x86-64 with AVX512-BF16: bfloat16 products two channels a step.
#include "convolution.h"
#include "isa.h"

#ifdef HRNET_FAST_X86
#define HRNET_FAST_HAS_BF16_INSTRUCTIONS
HRNET_FAST_TARGET_BEGIN("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
namespace hrnet_fast {
namespace avx512_bf16 {
#include "vec_avx512.h"
#include "exchange_impl.h"
#include "quads_avx512.h"
#include "convolve_impl.h"
}  // namespace avx512_bf16

void exchange_avx512_bf16(const Problem& q) {
  using namespace avx512_bf16;
  if (q.dtype != DType::kBFloat16) return exchange_avx512(q);
  if (q.channels_last)
    ChannelsLast<VecAvx512, BFloat16, DotProducts<VecAvx512, BFloat16>>::run(q);
  else
    Planar<VecAvx512, BFloat16>::run(q);
}

void convolve_avx512_bf16(const Convolution* convolutions, int count) {
  avx512_bf16::Convolve<avx512_bf16::QuadsAvx512>::run(convolutions, count);
}

}  // namespace hrnet_fast
HRNET_FAST_TARGET_END
#endif
