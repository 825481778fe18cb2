// Products of bytes for x86-64 with AVX2 alone: exact, and no faster than those of float32. Not in isa_avx2.cpp: in a
// unit twice as large the compiler inlines other functions.
#include "../isa.h"

HRNET_FAST_TARGET_BEGIN("avx2,fma,f16c")
namespace hrnet_fast {
namespace avx2_bytes {
#include "bytes_avx2.h"
}  // namespace avx2_bytes
}  // namespace hrnet_fast
HRNET_FAST_TARGET_END
