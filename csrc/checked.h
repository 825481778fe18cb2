// Sizes that a caller chose: what does not fit 64 bits is an error, not a small or negative number.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace hrnet_fast {

inline int64_t checked_sum(int64_t a, int64_t b) {
  int64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) throw std::runtime_error("hrnet_fast: sizes whose sum exceeds 64 bits");
  return sum;
}

inline int64_t checked_product(int64_t a, int64_t b) {
  int64_t product;
  if (__builtin_mul_overflow(a, b, &product))
    throw std::runtime_error("hrnet_fast: sizes whose product exceeds 64 bits");
  return product;
}

template <class... Rest>
int64_t checked_product(int64_t a, int64_t b, int64_t c, Rest... rest) {
  return checked_product(checked_product(a, b), c, rest...);
}

}  // namespace hrnet_fast
