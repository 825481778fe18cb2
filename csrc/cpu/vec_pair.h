// Two vectors of eight floats as one of sixteen, which kernels on tiles work on. Included inside the namespace of one
// instruction set.

template <class Half>
struct VecPair {
  using A = float;
  static constexpr int L = 2 * Half::L;
  Half a, b;

  static int low(int n) { return n < Half::L ? n : Half::L; }
  static int high(int n) { return n < Half::L ? 0 : n - Half::L; }
  static VecPair zero() { return {Half::zero(), Half::zero()}; }
  static VecPair set1(float x) { return {Half::set1(x), Half::set1(x)}; }
  template <class T>
  static VecPair load(const T* p) {
    return {Half::load(p), Half::load(p + Half::L)};
  }
  template <class T>
  static VecPair load(const T* p, int n) {
    return {Half::load(p, low(n)), Half::load(p + Half::L, high(n))};
  }
  template <class T>
  void store(T* p) const {
    a.store(p), b.store(p + Half::L);
  }
  template <class T>
  void store(T* p, int n) const {
    a.store(p, low(n)), b.store(p + Half::L, high(n));
  }
  void store_sum(BFloat16* high, BFloat16* rest) const { store_sum(high, rest, L); }
  void store_sum(BFloat16* rounded, BFloat16* rest, int n) const {
    a.store_sum(rounded, rest, low(n)), b.store_sum(rounded + Half::L, rest + Half::L, high(n));
  }
  static VecPair load_integers(const float* p) { return {Half::load_integers(p), Half::load_integers(p + Half::L)}; }
  void store_bytes(uint8_t* p) const { store_bytes(p, L); }
  void store_bytes(uint8_t* p, int n) const { a.store_bytes(p, low(n)), b.store_bytes(p + Half::L, high(n)); }
  static VecPair fma(VecPair x, VecPair y, VecPair z) { return {Half::fma(x.a, y.a, z.a), Half::fma(x.b, y.b, z.b)}; }
  VecPair operator+(VecPair o) const { return {a + o.a, b + o.b}; }
  VecPair operator*(VecPair o) const { return {a * o.a, b * o.b}; }
  VecPair at_least(VecPair floor) const { return {a.at_least(floor.a), b.at_least(floor.b)}; }
};
