// What compilers call the extensions of ARMv8. NEON itself is a part of every aarch64.
#pragma once

#if defined(__clang__)
#define HRNET_FAST_DOTPROD_TARGET "dotprod"
#define HRNET_FAST_MATRIX_TARGET "bf16,i8mm"
#else
#define HRNET_FAST_DOTPROD_TARGET "arch=armv8.2-a+dotprod"
#define HRNET_FAST_MATRIX_TARGET "arch=armv8.2-a+bf16+i8mm"
#endif
