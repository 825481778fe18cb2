// The CPU kernels' few ties to torch and to the machine: threads, scratch memory, the choice of instruction set.
#include "runtime.h"

#include <torch/csrc/stable/ops.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "convolution.h"
#include "problem.h"

namespace hrnet_fast {

void parallel_for(int64_t count, int64_t grain, Body body, void* context) {
  if (count <= 0) return;
  torch::stable::parallel_for(0, count, grain, [=](int64_t begin, int64_t end) { body(begin, end, context); });
}

int num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

namespace {

struct Buffer {
  void* data = nullptr;
  size_t size = 0;
  ~Buffer() { std::free(data); }
};

constexpr int kSlots = 3;
thread_local Buffer buffers[kSlots];

}  // namespace

void* scratch(int slot, size_t bytes) {
  Buffer& buffer = buffers[slot];
  if (buffer.size < bytes) {
    std::free(buffer.data);
    buffer.size = (bytes + (1 << 16)) & ~size_t{63};
    buffer.data = std::aligned_alloc(64, buffer.size);
    if (buffer.data == nullptr) {
      buffer.size = 0;
      throw std::bad_alloc();
    }
  }
  return buffer.data;
}

namespace {

struct Level {
  const char* name;
  void (*run)(const Problem&);
  void (*backward)(const BackwardProblem&);
  void (*convolve)(const Convolution*, int);  // null: there is none
  const ConvolutionCosts& (*costs)();
  void (*norm)(const NormProblem&, bool forward);
  void (*argmax)(const ArgmaxProblem&);
  bool (*supported)();
  const TiledKernels* tiled = nullptr;  // null: there is none
};

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
#endif

const Level levels[] = {
                          // best first
#if defined(__x86_64__)
    {"amx", exchange_amx, backward_avx512, convolve_avx512_bf16, costs_avx512, norm_avx512, argmax_avx512, has_amx,
     &tiled_amx},
    {"avx512_bf16", exchange_avx512_bf16, backward_avx512, convolve_avx512_bf16, costs_avx512, norm_avx512,
     argmax_avx512, has_avx512_bf16, &tiled_avx512_vnni},
    {"avx512_vnni", exchange_avx512, backward_avx512, convolve_avx512, costs_avx512, norm_avx512, argmax_avx512,
     has_avx512_vnni, &tiled_avx512_vnni},
    {"avx512", exchange_avx512, backward_avx512, convolve_avx512, costs_avx512, norm_avx512, argmax_avx512, has_avx512,
     &tiled_avx2},
    {"avx_vnni", exchange_avx2, backward_avx2, convolve_avx2, costs_avx2, norm_avx2, argmax_avx2, has_avx_vnni,
     &tiled_avx_vnni},
    {"avx2", exchange_avx2, backward_avx2, convolve_avx2, costs_avx2, norm_avx2, argmax_avx2, has_avx2, &tiled_avx2},
#endif
    {"portable", exchange_portable, backward_portable, nullptr, nullptr, norm_portable, argmax_portable,
     [] { return true; }},
};

const Level& level() {
  static const Level& best = [&]() -> const Level& {
    const Level* l = levels;
    while (!l->supported()) ++l;  // the portable one always is
    return *l;
  }();
  const char* wanted = std::getenv("HRNET_FAST_CPU_CAPABILITY");
  if (wanted == nullptr || *wanted == 0) return best;
  std::string known;
  for (const Level& l : levels) {
    if (std::string(wanted) == l.name) {
      if (l.supported()) return l;
      throw std::runtime_error(std::string("HRNET_FAST_CPU_CAPABILITY: this CPU does not have ") + wanted);
    }
    known += std::string(known.empty() ? "" : ", ") + l.name;
  }
  throw std::runtime_error("HRNET_FAST_CPU_CAPABILITY: expected one of " + known + ", got " + wanted);
}

}  // namespace

void run_exchange(const Problem& problem) { level().run(problem); }

void run_backward(const BackwardProblem& problem) { level().backward(problem); }

const char* why_not_convolve() {
  if (level().convolve != nullptr) return nullptr;
  return "planned convolutions need AVX2 with FMA and F16C, or AVX-512 (F, BW, DQ, VL)";
}

bool multiplies_pairs() { return level().convolve == convolve_avx512_bf16; }

bool multiplies_tiles() {
#if defined(__x86_64__)
  return &tiled_kernels() == &tiled_amx;
#else
  return false;
#endif
}

bool multiplies_bytes() { return level().tiled != nullptr; }

const TiledKernels& tiled_kernels() { return multiplies_bytes() ? *level().tiled : tiled_emulated; }

void run_convolve(const Convolution* convolutions, int count) {
  if (why_not_convolve() != nullptr) throw std::runtime_error(why_not_convolve());
  level().convolve(convolutions, count);
}

const ConvolutionCosts& convolution_costs() {
  if (why_not_convolve() != nullptr) throw std::runtime_error(why_not_convolve());
  return level().costs();
}

void run_norm(const NormProblem& problem, bool forward) { level().norm(problem, forward); }
void run_argmax(const ArgmaxProblem& problem) { level().argmax(problem); }

std::string cpu_capability() { return level().name; }

std::string cpu_capabilities() {
  std::string names;
  for (const Level& l : levels)
    if (l.supported()) names += std::string(names.empty() ? "" : " ") + l.name;
  return names;
}

}  // namespace hrnet_fast
