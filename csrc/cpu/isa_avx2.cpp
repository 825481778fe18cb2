// The exchange for x86-64 with AVX2 with FMA and F16C (2013 and later).
#include "convolution.h"
#include "isa.h"

#ifdef HRNET_FAST_X86
HRNET_FAST_TARGET_BEGIN("avx2,fma,f16c")
namespace hrnet_fast {
namespace avx2 {
#include "vec_avx2.h"
#include "exchange_impl.h"
#include "quads_avx2.h"
#include "convolve_impl.h"

template <class V, class T>
static void run(const Problem& q) {
  q.channels_last ? ChannelsLast<V, T, FmaProducts<V, T>>::run(q) : Planar<V, T>::run(q);
}

template <class V, class T>
static void norm(const NormProblem& q, bool forward) {
  forward ? BatchNorm<V, T>::forward(q) : BatchNorm<V, T>::backward(q);
}
}  // namespace avx2

void exchange_avx2(const Problem& q) {
  switch (q.dtype) {
    case DType::kFloat32: return avx2::run<avx2::VecAvx2, float>(q);
    case DType::kBFloat16: return avx2::run<avx2::VecAvx2, BFloat16>(q);
    case DType::kFloat16: return avx2::run<avx2::VecAvx2, Float16>(q);
    case DType::kFloat64: return avx2::run<avx2::VecGeneric<double, 4>, double>(q);
  }
}

void backward_avx2(const BackwardProblem& q) {
  switch (q.dtype) {
    case DType::kFloat32: return avx2::Backward<avx2::VecAvx2, float>::run(q);
    case DType::kBFloat16: return avx2::Backward<avx2::VecAvx2, BFloat16>::run(q);
    case DType::kFloat16: return avx2::Backward<avx2::VecAvx2, Float16>::run(q);
    case DType::kFloat64: return avx2::Backward<avx2::VecGeneric<double, 4>, double>::run(q);
  }
}

void convolve_avx2(const Convolution* convolutions, int count) {
  avx2::Convolve<avx2::QuadsAvx2>::run(convolutions, count);
}

const ConvolutionCosts& costs_avx2() { return avx2::QuadsAvx2::kCosts; }

void norm_avx2(const NormProblem& q, bool forward) {
  switch (q.dtype) {
    case DType::kFloat32: return avx2::norm<avx2::VecAvx2, float>(q, forward);
    case DType::kBFloat16: return avx2::norm<avx2::VecAvx2, BFloat16>(q, forward);
    case DType::kFloat16: return avx2::norm<avx2::VecAvx2, Float16>(q, forward);
    case DType::kFloat64: return avx2::norm<avx2::VecGeneric<double, 4>, double>(q, forward);
  }
}

void argmax_avx2(const ArgmaxProblem& q) {
  switch (q.dtype) {
    case DType::kFloat32: return avx2::InterpolateArgmax<avx2::VecAvx2, float>::run(q);
    case DType::kBFloat16: return avx2::InterpolateArgmax<avx2::VecAvx2, BFloat16>::run(q);
    case DType::kFloat16: return avx2::InterpolateArgmax<avx2::VecAvx2, Float16>::run(q);
    case DType::kFloat64: return avx2::InterpolateArgmax<avx2::VecGeneric<double, 4>, double>::run(q);
  }
}

}  // namespace hrnet_fast
HRNET_FAST_TARGET_END
#endif
