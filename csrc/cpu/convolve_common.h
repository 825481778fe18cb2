// What the kernels of planned convolutions share. Included inside the namespace of one instruction set.

// Weights are asked for so many numbers (2 KiB) ahead: the hardware does not follow them over the borders of pages.
constexpr int64_t kWeightsAhead = 512;

// sum + factor * in, or with PAIRS the products of both halves of the lanes.
template <class Q, bool PAIRS>
static typename Q::V multiply_add(typename Q::V factor, typename Q::V in, typename Q::V sum) {
  if constexpr (PAIRS)
    return Q::dot_pairs(factor, in, sum);
  else
    return Q::V::fma(factor, in, sum);
}

// Calls f with a null pointer to elements of a type. One place for all kernels; what runs in f is small or long.
template <class F>
static void with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kBFloat16: return f(static_cast<BFloat16*>(nullptr));
    case DType::kFloat16: return f(static_cast<Float16*>(nullptr));
    default: return f(static_cast<float*>(nullptr));
  }
}
