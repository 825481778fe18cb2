// Products of bytes for x86-64 with AVX-VNNI (Alder Lake, Zen 5 and later).
#include "../isa.h"

#define HRNET_FAST_HAS_AVX_VNNI
HRNET_FAST_TARGET_BEGIN("avxvnni,avx2,fma,f16c")
namespace hrnet_fast {
namespace avx_vnni {
#include "bytes_avx2.h"
}  // namespace avx_vnni
}  // namespace hrnet_fast
HRNET_FAST_TARGET_END
