// What csrc/cuda/device.h asks of a GPU, done by the host: the threads of a block are coroutines that take turns at
// barriers, and a warp's matrix instruction gathers the fragments of its 32 lanes where the PTX ISA puts them.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "../../../csrc/cpu/half.h"

#define HRNET_FAST_DEVICE inline
#define HRNET_FAST_KERNEL(threads, blocks) void
#define HRNET_FAST_PARAMETER const

namespace hrnet_fast {
namespace cuda {

using hrnet_fast::BFloat16;
using hrnet_fast::Float16;
using hrnet_fast::to_float;

struct Block {
  struct Fragment {
    uint32_t a[4], b[2];
  };
  int threads, thread = 0;
  unsigned index;
  std::vector<unsigned char> shared;
  std::vector<ucontext_t> contexts;
  std::vector<std::unique_ptr<char[]>> stacks;
  std::vector<bool> done;
  std::vector<Fragment> fragments;
  std::function<void()> body;
  ucontext_t scheduler;

  // Every turn runs each thread up to its next barrier, of the block or of its warp, or to its end. Threads that wait
  // for their warp alone may so run ahead of the block's barrier by no more than what the kernels allow: all warps
  // have the same number of turns, or none of them waits for the block.
  void yield() { swapcontext(&contexts[thread], &scheduler); }
};
inline Block* current = nullptr;

inline int thread() { return current->thread; }
inline int threads() { return current->threads; }
inline unsigned block() { return current->index; }
inline void* shared_memory() { return current->shared.data(); }

// Threads at the block's barrier wait until all are there; those that multiply go on by themselves.
inline int waiting = 0, generation = 0;
inline void barrier() {
  const int mine = generation;
  if (++waiting == current->threads) {
    waiting = 0;
    ++generation;
  }
  while (generation == mine) current->yield();
}

inline int warp_waiting[32], warp_generation[32];
inline void warp_barrier() {
  const int warp = current->thread / 32, mine = warp_generation[warp];
  if (++warp_waiting[warp] == 32) {
    warp_waiting[warp] = 0;
    ++warp_generation[warp];
  }
  while (warp_generation[warp] == mine) current->yield();
}

inline float to_float(float x) { return x; }
template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline Float16 from_float<Float16>(float x) {
  return to_float16(x);
}
template <>
inline BFloat16 from_float<BFloat16>(float x) {
  return to_bfloat16(x);
}

template <class T>
float half_of(uint32_t pair, int i) {
  return to_float(T{static_cast<uint16_t>(pair >> (16 * i))});
}

inline const Block::Fragment* exchange_fragments(const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Block::Fragment& mine = current->fragments[current->thread];
  memcpy(mine.a, a, sizeof(a));
  memcpy(mine.b, b, sizeof(b));
  warp_barrier();
  return &current->fragments[current->thread / 32 * 32];
}

// PTX ISA, mma.m16n8k16: a[i] of lane l holds row l / 4 + 8 (i % 2), columns l % 4 * 2 + {0, 1} + 8 (i / 2); b[i] rows
// l % 4 * 2 + {0, 1} + 8 i of column l / 4; d rows l / 4 and l / 4 + 8, columns l % 4 * 2 + {0, 1}.
template <class T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T) {
  const Block::Fragment* warp = exchange_fragments(a, b);
  const int lane = current->thread % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const uint32_t from = warp[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2];
      d[i] += half_of<T>(from, k % 2) * half_of<T>(warp[column * 4 + k % 8 / 2].b[k / 8], k % 2);
    }
  }
  warp_barrier();
}

// To nearest, ties away from zero: cvt.rna.tf32.f32.
inline float to_tf32(float x) { return bit_cast<float>((bit_cast<uint32_t>(x) + 0x1000u) & 0xffffe000u); }

// PTX ISA, mma.m16n8k8 of TF32: a[i] of lane l holds row l / 4 + 8 (i % 2), column l % 4 + 4 (i / 2); b[i] row
// l % 4 + 4 i of column l / 4.
inline void multiply_add(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  uint32_t left[4], right[2];
  memcpy(left, a, sizeof(left));
  memcpy(right, b, sizeof(right));
  const Block::Fragment* warp = exchange_fragments(left, right);
  const int lane = current->thread % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 8; ++k) {
      const float from = bit_cast<float>(warp[row % 8 * 4 + k % 4].a[row / 8 + k / 4 * 2]);
      d[i] += to_tf32(from) * to_tf32(bit_cast<float>(warp[column * 4 + k % 4].b[k / 4]));
    }
  }
  warp_barrier();
}

// Runs a kernel: its blocks one after the other.
template <class Kernel>
void start(int64_t blocks, int threads, int shared, Kernel&& kernel) {
  constexpr size_t kStack = 256 << 10;
  Block b;
  b.threads = threads;
  b.contexts.resize(threads);
  b.fragments.resize(threads);
  for (int i = 0; i < threads; ++i) b.stacks.emplace_back(new char[kStack]);
  b.body = kernel;
  current = &b;
  for (int64_t index = 0; index < blocks; ++index) {
    b.index = static_cast<unsigned>(index);
    b.shared.assign(static_cast<size_t>(shared), 0xff);  // NaN: what nobody wrote must not be read
    b.done.assign(threads, false);
    for (int i = 0; i < threads; ++i) {
      getcontext(&b.contexts[i]);
      b.contexts[i].uc_stack.ss_sp = b.stacks[i].get();
      b.contexts[i].uc_stack.ss_size = kStack;
      b.contexts[i].uc_link = &b.scheduler;
      makecontext(
          &b.contexts[i],
          +[] {
            current->body();
            current->done[current->thread] = true;
          },
          0);
    }
    for (bool running = true; running;) {
      running = false;
      for (int i = 0; i < threads; ++i) {
        if (b.done[i]) continue;
        running = true;
        b.thread = i;
        swapcontext(&b.scheduler, &b.contexts[i]);
      }
    }
  }
  current = nullptr;
}

}  // namespace cuda
}  // namespace hrnet_fast
