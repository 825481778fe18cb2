// The instruction sets that kernels were compiled for.
#pragma once

#include <vector>

#include "kernels.h"

namespace hrnet_fast {

struct InstructionSet {
  const char* name;
  bool (*supported)();
  std::vector<const Kernels*> kernels;  // what the first one lacks the next one has
  // The first table that has it, or null.
  template <class Function>
  const Kernels* with(Function Kernels::* function) const {
    for (const Kernels* k : kernels)
      if (k->*function != nullptr) return k;
    return nullptr;
  }
};

// Best first; the last one runs on any CPU.
const std::vector<InstructionSet>& instruction_sets();

}  // namespace hrnet_fast
