// The exchange for any CPU: vectors of four floats by the compiler's extension (SSE2, NEON).
#include <cmath>
#include <cstring>
#include <type_traits>

#include "half.h"
#include "problem.h"

namespace hrnet_fast {
namespace portable {
#include "exchange_impl.h"

template <class V, class T>
static void run(const Problem& q) {
  q.channels_last ? ChannelsLast<V, T, FmaProducts<V, T>>::run(q) : Planar<V, T>::run(q);
}

template <class V, class T>
static void norm(const NormProblem& q, bool forward) {
  forward ? BatchNorm<V, T>::forward(q) : BatchNorm<V, T>::backward(q);
}
}  // namespace portable

void exchange_portable(const Problem& q) {
  using F = portable::VecGeneric<float, 4>;
  switch (q.dtype) {
    case DType::kFloat32: return portable::run<F, float>(q);
    case DType::kBFloat16: return portable::run<F, BFloat16>(q);
    case DType::kFloat16: return portable::run<F, Float16>(q);
    case DType::kFloat64: return portable::run<portable::VecGeneric<double, 2>, double>(q);
  }
}

void backward_portable(const BackwardProblem& q) {
  using F = portable::VecGeneric<float, 4>;
  switch (q.dtype) {
    case DType::kFloat32: return portable::Backward<F, float>::run(q);
    case DType::kBFloat16: return portable::Backward<F, BFloat16>::run(q);
    case DType::kFloat16: return portable::Backward<F, Float16>::run(q);
    case DType::kFloat64: return portable::Backward<portable::VecGeneric<double, 2>, double>::run(q);
  }
}

void norm_portable(const NormProblem& q, bool forward) {
  using F = portable::VecGeneric<float, 4>;
  switch (q.dtype) {
    case DType::kFloat32: return portable::norm<F, float>(q, forward);
    case DType::kBFloat16: return portable::norm<F, BFloat16>(q, forward);
    case DType::kFloat16: return portable::norm<F, Float16>(q, forward);
    case DType::kFloat64: return portable::norm<portable::VecGeneric<double, 2>, double>(q, forward);
  }
}

void argmax_portable(const ArgmaxProblem& q) {
  using F = portable::VecGeneric<float, 4>;
  switch (q.dtype) {
    case DType::kFloat32: return portable::InterpolateArgmax<F, float>::run(q);
    case DType::kBFloat16: return portable::InterpolateArgmax<F, BFloat16>::run(q);
    case DType::kFloat16: return portable::InterpolateArgmax<F, Float16>::run(q);
    case DType::kFloat64: return portable::InterpolateArgmax<portable::VecGeneric<double, 2>, double>::run(q);
  }
}

}  // namespace hrnet_fast
