// The instruction sets, and whether the CPU at hand has them.
#include "instruction_sets.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace hrnet_fast {

// clang-format off
#if defined(__x86_64__)
namespace amx { extern const Kernels kernels; }
namespace avx512_bf16 { extern const Kernels kernels; }
namespace avx512_vnni { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
namespace avx_vnni { extern const Kernels kernels; }
namespace avx2_bytes { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
#elif defined(__aarch64__)
namespace neon_matrix { extern const Kernels kernels; }
namespace neon_dotprod { extern const Kernels kernels; }
namespace neon { extern const Kernels kernels; }
#endif
namespace portable { extern const Kernels kernels; }
// clang-format on

namespace {

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx_vnni() {
  unsigned a, b, c, d;
  constexpr unsigned kAvxVnni = 1u << 4;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & kAvxVnni) != 0;
}
bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
bool has_avx512_bf16() { return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }
bool has_amx() {
#if defined(__linux__)
  if (!has_avx512_bf16()) return false;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kNeeded = 1u << 22 | 1u << 24 | 1u << 25;  // AMX-BF16, AMX-TILE, AMX-INT8
  if ((d & kNeeded) != kNeeded) return false;
  // Linux wants to be asked before a process may use the tile registers.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}
#elif defined(__aarch64__)
// The bits of the Linux kernel's asm/hwcap.h, which may be older than the CPU. Other systems get what all CPUs have.
bool has_neon_dotprod() {
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;
  return (getauxval(AT_HWCAP) & kDotProduct) != 0;
#else
  return false;
#endif
}
bool has_neon_matrix() {
#if defined(__linux__)
  constexpr unsigned long kNeeded = 1ul << 13 | 1ul << 14;  // I8MM, BF16
  return (getauxval(AT_HWCAP2) & kNeeded) == kNeeded;
#else
  return false;
#endif
}
#endif

bool always() { return true; }

}  // namespace

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = {
#if defined(__x86_64__)
      {"amx", has_amx, {&amx::kernels, &avx512_bf16::kernels, &avx512::kernels}},
      {"avx512_bf16", has_avx512_bf16, {&avx512_bf16::kernels, &avx512_vnni::kernels, &avx512::kernels}},
      {"avx512_vnni", has_avx512_vnni, {&avx512_vnni::kernels, &avx512::kernels}},
      {"avx512", has_avx512, {&avx512::kernels, &avx2_bytes::kernels}},
      {"avx_vnni", has_avx_vnni, {&avx_vnni::kernels, &avx2::kernels}},
      {"avx2", has_avx2, {&avx2::kernels, &avx2_bytes::kernels}},
#elif defined(__aarch64__)
      {"neon_matrix", has_neon_matrix, {&neon_matrix::kernels, &neon::kernels}},
      {"neon_dotprod", has_neon_dotprod, {&neon_dotprod::kernels, &neon::kernels}},
      {"neon", always, {&neon::kernels}},
#endif
      {"portable", always, {&portable::kernels}},
  };
  return sets;
}

}  // namespace hrnet_fast
