// What the tests of the CPU kernels without torch share: random numbers, tensors with guards around them, and the
// project's tolerances.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../../csrc/cpu/half.h"
#include "../../../csrc/cpu/instruction_sets.h"

namespace hrnet_fast {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Random {  // SplitMix64
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t between(int64_t least, int64_t most) {
    return least + static_cast<int64_t>(bits() % static_cast<uint64_t>(most - least + 1));
  }
  bool chance(double p) { return uniform() < p; }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  double normal() { return uniform() + uniform() + uniform() + uniform() + uniform() + uniform() - 3; }  // nearly
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[between(0, static_cast<int64_t>(values.size()) - 1)];
  }
  int64_t channels(int64_t most) {  // multiples of the lanes, and those of HRNets, more often than others
    return std::min(most,
                    one_of({between(1, most), between(1, 8), int64_t{16}, int64_t{18}, int64_t{36}, int64_t{48}}));
  }
  DType dtype(bool with_double) {
    const DType all[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};
    return all[between(0, with_double ? 3 : 2)];
  }

 private:
  uint64_t state_;
};

inline int64_t size_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// Numbers of a dtype; what lies around them must stay as it is.
class Numbers {
  static constexpr int64_t kGuard = 128;
  DType dtype_;
  int64_t count_;
  std::vector<char> bytes_;

 public:
  explicit Numbers(DType dtype = DType::kFloat32, int64_t count = 0)
      : dtype_(dtype), count_(count), bytes_(static_cast<size_t>(count * size_of(dtype) + 2 * kGuard), '\x5a') {}
  Numbers(DType dtype, int64_t count, Random& random, double scale = 1) : Numbers(dtype, count) {
    for (int64_t i = 0; i < count; ++i) set(i, scale * random.normal());
  }
  int64_t count() const { return count_; }
  DType dtype() const { return dtype_; }
  char* data() { return bytes_.data() + kGuard; }
  const char* data() const { return bytes_.data() + kGuard; }
  template <class T>
  T as(int64_t i) const {
    T value;
    std::memcpy(&value, data() + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
    return value;
  }
  double operator[](int64_t i) const {
    switch (dtype_) {
      case DType::kFloat64: return as<double>(i);
      case DType::kFloat32: return as<float>(i);
      case DType::kBFloat16: return to_float(as<BFloat16>(i));
      default: return to_float(as<Float16>(i));
    }
  }
  void set(int64_t i, double x) {
    const float f = static_cast<float>(x);
    switch (dtype_) {
      case DType::kFloat64: return put(i, x);
      case DType::kFloat32: return put(i, f);
      case DType::kBFloat16: return put(i, to_bfloat16(f));
      default: return put(i, to_float16(f));
    }
  }
  template <class T>
  void put(int64_t i, T value) {
    std::memcpy(data() + i * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
  }
  void check_guards(const std::string& what) const {
    for (int64_t i = 0; i < kGuard; ++i)
      if (bytes_[static_cast<size_t>(i)] != '\x5a' || bytes_[bytes_.size() - 1 - static_cast<size_t>(i)] != '\x5a')
        throw Failure(what + ": something was written outside of it");
  }
};

// By DType: the table OPERATOR of hrnet_fast/tolerances.py, from the command line.
extern double tolerances[4];

// ||x - expected|| within `tolerance` times ||expected||.
inline void check_close(const Numbers& x, const std::vector<double>& expected, double tolerance,
                        const std::string& what) {
  x.check_guards(what);
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < x.count(); ++i) {
    const double e = expected[static_cast<size_t>(i)], d = x[i] - e;
    difference += d * d, norm += e * e;
  }
  if (!(difference <= tolerance * tolerance * norm))
    throw Failure(what + ": relative error " + std::to_string(std::sqrt(difference / norm)));
}
inline void check_close(const Numbers& x, const std::vector<double>& expected, const std::string& what) {
  check_close(x, expected, tolerances[static_cast<int>(x.dtype())], what);
}

// Where a row or column of an interpolated image comes from, in float64; the nearest one in float32 as in torch.
struct From {
  int64_t i0, i1;
  double w0, w1;
};
From from_of(Mode mode, int64_t out, int64_t in_size, int64_t out_size);

// What is tested: each throws a Failure. `set`: what runs.
void test_exchange(const InstructionSet& set, Random& random);
void test_backward(const InstructionSet& set, Random& random);
void test_norm(const InstructionSet& set, Random& random);
void test_argmax(const InstructionSet& set, Random& random);
void test_convolutions(const InstructionSet& set, Random& random);
void test_conversions(const InstructionSet& set, Random& random);
void test_tiled_convolution(const InstructionSet& set, Random& random);
void test_tiled_exchange(const InstructionSet& set, Random& random);
void test_tiled_layouts(const InstructionSet& set, Random& random);

}  // namespace hrnet_fast
