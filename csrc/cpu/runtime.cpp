// The CPU kernels' ties to the machine: scratch memory, and the choice of instruction set.
#include "runtime.h"

#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#include "instruction_sets.h"

namespace hrnet_fast {

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

const InstructionSet& chosen() {
  static const InstructionSet& best = [&]() -> const InstructionSet& {
    auto s = instruction_sets().begin();
    while (!s->supported()) ++s;
    return *s;
  }();
  const char* wanted = std::getenv("HRNET_FAST_CPU_CAPABILITY");
  if (wanted == nullptr || *wanted == 0) return best;
  std::string known;
  for (const InstructionSet& s : instruction_sets()) {
    if (std::string(wanted) == s.name) {
      if (s.supported()) return s;
      throw std::runtime_error(std::string("HRNET_FAST_CPU_CAPABILITY: this CPU does not have ") + wanted);
    }
    known += std::string(known.empty() ? "" : ", ") + s.name;
  }
  throw std::runtime_error("HRNET_FAST_CPU_CAPABILITY: expected one of " + known + ", got " + wanted);
}

// The function of the chosen instruction set; null where it has none.
template <class Function>
Function kernel(Function Kernels::* function) {
  const Kernels* k = chosen().with(function);
  return k == nullptr ? nullptr : k->*function;
}

}  // namespace

void run_exchange(const Problem& problem) { kernel (&Kernels::exchange)(problem); }
void run_backward(const BackwardProblem& problem) { kernel (&Kernels::backward)(problem); }
void run_norm(const NormProblem& problem, bool forward) { kernel (&Kernels::norm)(problem, forward); }
void run_argmax(const ArgmaxProblem& problem) { kernel (&Kernels::argmax)(problem); }

const char* why_not_convolve() {
  if (kernel(&Kernels::convolve) != nullptr) return nullptr;
  return "planned convolutions need AVX2 with FMA and F16C, AVX-512 (F, BW, DQ, VL) or NEON";
}

void run_convolve(const Convolution* convolutions, int count) {
  if (why_not_convolve() != nullptr) throw std::runtime_error(why_not_convolve());
  kernel (&Kernels::convolve)(convolutions, count);
}

const ConvolutionCosts& convolution_costs() {
  if (why_not_convolve() != nullptr) throw std::runtime_error(why_not_convolve());
  return *kernel(&Kernels::costs);
}

bool multiplies_pairs() {
  const Kernels* k = chosen().with(&Kernels::convolve);
  return k != nullptr && k->pairs;
}

bool multiplies_tiles() { return kernel(&Kernels::tiled_bfloat16) != nullptr; }

bool multiplies_bytes() { return kernel(&Kernels::tiled) != nullptr; }

const TiledKernels& tiled_kernels(bool bytes) {
  const TiledKernels* found = bytes || !multiplies_tiles() ? kernel(&Kernels::tiled) : kernel(&Kernels::tiled_bfloat16);
  return found == nullptr ? tiled_emulated : *found;
}

std::string cpu_capability() { return chosen().name; }

std::string cpu_capabilities() {
  std::string names;
  for (const InstructionSet& s : instruction_sets())
    if (s.supported()) names += std::string(names.empty() ? "" : " ") + s.name;
  return names;
}

}  // namespace hrnet_fast
