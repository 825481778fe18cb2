// The few things that the kernels ask of the GPU. tests/support/cuda_on_host/device_on_host.h is the same for the host.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#define HRNET_FAST_DEVICE __device__ __forceinline__
#define HRNET_FAST_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define HRNET_FAST_PARAMETER const __grid_constant__

namespace hrnet_fast {
namespace cuda {

using Float16 = __half;
using BFloat16 = __nv_bfloat16;

HRNET_FAST_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
HRNET_FAST_DEVICE int threads() { return static_cast<int>(blockDim.x); }
HRNET_FAST_DEVICE unsigned block() { return blockIdx.x; }
HRNET_FAST_DEVICE void barrier() { __syncthreads(); }
HRNET_FAST_DEVICE void* shared_memory() {
  extern __shared__ __align__(16) unsigned char buffer[];
  return buffer;
}

HRNET_FAST_DEVICE float to_float(float x) { return x; }
HRNET_FAST_DEVICE float to_float(Float16 x) { return __half2float(x); }
HRNET_FAST_DEVICE float to_float(BFloat16 x) { return __bfloat162float(x); }

template <class T>
HRNET_FAST_DEVICE T from_float(float x);
template <>
HRNET_FAST_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
HRNET_FAST_DEVICE Float16 from_float<Float16>(float x) {
  return __float2half_rn(x);
}
template <>
HRNET_FAST_DEVICE BFloat16 from_float<BFloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// d[16, 8] += a[16, 16] b[16, 8], all lanes of a warp together; fragments as in the PTX ISA, mma.m16n8k16.
HRNET_FAST_DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Float16) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  for (int s = 0; s < 2; ++s)
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2 * s]), "r"(a[2 * s + 1]), "r"(b[s]));
#endif
}
HRNET_FAST_DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], BFloat16) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  asm("trap;");  // never launched on such a GPU
#endif
}
// d[16, 8] += a[16, 8] b[8, 8], rounded to TF32; fragments as in the PTX ISA, mma.m16n8k8.
HRNET_FAST_DEVICE void multiply_add(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  uint32_t u[6];
  for (int i = 0; i < 4; ++i) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(u[i]) : "f"(a[i]));
  for (int i = 0; i < 2; ++i) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(u[4 + i]) : "f"(b[i]));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(u[0]), "r"(u[1]), "r"(u[2]), "r"(u[3]), "r"(u[4]), "r"(u[5]));
#else
  asm("trap;");  // never launched on such a GPU
#endif
}

}  // namespace cuda
}  // namespace hrnet_fast
