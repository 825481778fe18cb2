// What every file for one instruction set begins with. All other headers come before the target switch, so that nothing
// of theirs is compiled for an instruction set that the CPU at hand may lack.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "half.h"
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define HRNET_FAST_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define HRNET_FAST_TARGET_BEGIN(features) \
  HRNET_FAST_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define HRNET_FAST_TARGET_END _Pragma("clang attribute pop")
#else
#define HRNET_FAST_TARGET_BEGIN(features) _Pragma("GCC push_options") HRNET_FAST_PRAGMA(GCC target(features))
#define HRNET_FAST_TARGET_END _Pragma("GCC pop_options")
#endif
