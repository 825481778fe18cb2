// Operators of one instruction set for every dtype and layout. Included inside its namespace, after exchange_impl.h.

template <class Vector, class Element>
struct Types {
  using V = Vector;
  using T = Element;
};

// V: vectors of floats, D: of doubles.
template <class V, class D>
class EveryDType {
  template <class F>
  static void with_types(DType dtype, F f) {
    switch (dtype) {
      case DType::kFloat32: return f(Types<V, float>{});
      case DType::kBFloat16: return f(Types<V, BFloat16>{});
      case DType::kFloat16: return f(Types<V, Float16>{});
      case DType::kFloat64: return f(Types<D, double>{});
    }
  }

 public:
  static void exchange(const Problem& q) {
    with_types(q.dtype, [&](auto types) {
      using W = typename decltype(types)::V;
      using T = typename decltype(types)::T;
      q.channels_last ? ChannelsLast<W, T, FmaProducts<W, T>>::run(q) : Planar<W, T>::run(q);
    });
  }
  static void backward(const BackwardProblem& q) {
    with_types(q.dtype,
               [&](auto types) { Backward<typename decltype(types)::V, typename decltype(types)::T>::run(q); });
  }
  static void norm(const NormProblem& q, bool forward) {
    with_types(q.dtype, [&](auto types) {
      using Norm = BatchNorm<typename decltype(types)::V, typename decltype(types)::T>;
      forward ? Norm::forward(q) : Norm::backward(q);
    });
  }
  static void argmax(const ArgmaxProblem& q) {
    with_types(q.dtype, [&](auto types) {
      InterpolateArgmax<typename decltype(types)::V, typename decltype(types)::T>::run(q);
    });
  }
  static constexpr Kernels kernels() {
    Kernels k;
    k.exchange = exchange, k.backward = backward, k.norm = norm, k.argmax = argmax;
    return k;
  }
};
