// The exchange for x86-64 with AVX-512 (F, BW, DQ, VL).
#include "convolution.h"
#include "isa.h"

#ifdef HRNET_FAST_X86
HRNET_FAST_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
namespace hrnet_fast {
namespace avx512 {
#include "vec_avx512.h"
#include "exchange_impl.h"
#include "quads_avx512.h"
#include "convolve_impl.h"

template <class V, class T>
static void run(const Problem& q) {
  q.channels_last ? ChannelsLast<V, T, FmaProducts<V, T>>::run(q) : Planar<V, T>::run(q);
}

template <class V, class T>
static void norm(const NormProblem& q, bool forward) {
  forward ? BatchNorm<V, T>::forward(q) : BatchNorm<V, T>::backward(q);
}
}  // namespace avx512

void exchange_avx512(const Problem& q) {
  switch (q.dtype) {
    case DType::kFloat32: return avx512::run<avx512::VecAvx512, float>(q);
    case DType::kBFloat16: return avx512::run<avx512::VecAvx512, BFloat16>(q);
    case DType::kFloat16: return avx512::run<avx512::VecAvx512, Float16>(q);
    case DType::kFloat64: return avx512::run<avx512::VecGeneric<double, 8>, double>(q);
  }
}

void backward_avx512(const BackwardProblem& q) {
  switch (q.dtype) {
    case DType::kFloat32: return avx512::Backward<avx512::VecAvx512, float>::run(q);
    case DType::kBFloat16: return avx512::Backward<avx512::VecAvx512, BFloat16>::run(q);
    case DType::kFloat16: return avx512::Backward<avx512::VecAvx512, Float16>::run(q);
    case DType::kFloat64: return avx512::Backward<avx512::VecGeneric<double, 8>, double>::run(q);
  }
}

void convolve_avx512(const Convolution* convolutions, int count) {
  avx512::Convolve<avx512::QuadsAvx512>::run(convolutions, count);
}

const ConvolutionCosts& costs_avx512() { return avx512::QuadsAvx512::kCosts; }

void norm_avx512(const NormProblem& q, bool forward) {
  switch (q.dtype) {
    case DType::kFloat32: return avx512::norm<avx512::VecAvx512, float>(q, forward);
    case DType::kBFloat16: return avx512::norm<avx512::VecAvx512, BFloat16>(q, forward);
    case DType::kFloat16: return avx512::norm<avx512::VecAvx512, Float16>(q, forward);
    case DType::kFloat64: return avx512::norm<avx512::VecGeneric<double, 8>, double>(q, forward);
  }
}

void argmax_avx512(const ArgmaxProblem& q) {
  switch (q.dtype) {
    case DType::kFloat32: return avx512::InterpolateArgmax<avx512::VecAvx512, float>::run(q);
    case DType::kBFloat16: return avx512::InterpolateArgmax<avx512::VecAvx512, BFloat16>::run(q);
    case DType::kFloat16: return avx512::InterpolateArgmax<avx512::VecAvx512, Float16>::run(q);
    case DType::kFloat64: return avx512::InterpolateArgmax<avx512::VecGeneric<double, 8>, double>::run(q);
  }
}

}  // namespace hrnet_fast
HRNET_FAST_TARGET_END
#endif
