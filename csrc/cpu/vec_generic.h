// Vectors by the compiler's own extension: the portable path, and float64 everywhere.
// Included inside the namespace of one instruction set.

template <class T>
struct Convert;
template <>
struct Convert<float> {
  static float wide(float x) { return x; }
  static float narrow(float x) { return x; }
};
template <>
struct Convert<double> {
  static double wide(double x) { return x; }
  static double narrow(double x) { return x; }
};
template <>
struct Convert<BFloat16> {
  static float wide(BFloat16 x) { return to_float(x); }
  static BFloat16 narrow(float x) { return to_bfloat16(x); }
};
template <>
struct Convert<Float16> {
  static float wide(Float16 x) { return to_float(x); }
  static Float16 narrow(float x) { return to_float16(x); }
};

// EXACT: multiplications and additions in one step round once, on every CPU.
template <class Element, int Lanes, bool EXACT = false>
struct VecGeneric {
  using A = Element;
  static constexpr int L = Lanes;
  static constexpr int MR = 4;  // rows of a register tile; PV vectors across
  static constexpr int PV = 3;
  static constexpr bool kTransposes = false;
  typedef Element Native __attribute__((vector_size(Lanes * sizeof(Element))));
  Native v;

  static VecGeneric zero() { return {Native{}}; }
  static VecGeneric set1(A x) { return {Native{} + x}; }
  template <class T>
  static VecGeneric load(const T* p) {
    VecGeneric r;
    for (int i = 0; i < L; ++i) r.v[i] = Convert<T>::wide(p[i]);
    return r;
  }
  static VecGeneric load(const A* p) {
    VecGeneric r;
    std::memcpy(&r.v, p, sizeof(Native));
    return r;
  }
  template <class T>
  static VecGeneric load(const T* p, int n) {
    VecGeneric r = zero();
    for (int i = 0; i < n; ++i) r.v[i] = Convert<T>::wide(p[i]);
    return r;
  }
  template <class T>
  void store(T* p) const {
    for (int i = 0; i < L; ++i) p[i] = Convert<T>::narrow(v[i]);
  }
  void store(A* p) const { std::memcpy(p, &v, sizeof(Native)); }
  template <class T>
  void store(T* p, int n) const {
    for (int i = 0; i < n; ++i) p[i] = Convert<T>::narrow(v[i]);
  }
  // The numbers rounded, and what the rounding took away (nothing of infinity and NaN).
  void store_sum(BFloat16* high, BFloat16* low) const { store_sum(high, low, L); }
  void store_sum(BFloat16* high, BFloat16* low, int n) const {
    for (int i = 0; i < n; ++i) {
      high[i] = to_bfloat16(v[i]);
      const A rest = v[i] - to_float(high[i]);
      low[i] = to_bfloat16(rest == rest ? rest : A(0));
    }
  }
  // Integers in the place of floats.
  static VecGeneric load_integers(const A* p) { return load_integers(p, L); }
  static VecGeneric load_integers(const A* p, int n) {
    VecGeneric r = zero();
    for (int i = 0; i < n; ++i) {
      int32_t integer;
      std::memcpy(&integer, p + i, sizeof(integer));
      r.v[i] = static_cast<A>(integer);
    }
    return r;
  }
  // Rounded to integers from 0 to 255, ties to even; NaN becomes 0.
  void store_bytes(uint8_t* p) const { store_bytes(p, L); }
  void store_bytes(uint8_t* p, int n) const {
    for (int i = 0; i < n; ++i)
      p[i] = v[i] < 255 ? v[i] > 0 ? static_cast<uint8_t>(std::nearbyint(v[i])) : 0 : v[i] == v[i] ? 255 : 0;
  }
  // p[index[i]] for index[i] < 2 L; 2 L elements from p on may be read
  static VecGeneric pick(const A* p, const int32_t* index) {
    VecGeneric r;
    for (int i = 0; i < L; ++i) r.v[i] = p[index[i]];
    return r;
  }
  static VecGeneric shuffle(const A* p, const int32_t* index) { return pick(p, index); }
  // Where value is larger than best, or kNaN and the first NaN, it takes best's place and c that of label.
  template <bool kNaN>
  static void keep_larger(VecGeneric& best, VecGeneric& label, VecGeneric value, VecGeneric c) {
    auto larger = value.v > best.v;
    if (kNaN) larger = (larger | (value.v != value.v)) & (best.v == best.v);
    best.v = larger ? value.v : best.v;
    label.v = larger ? c.v : label.v;
  }
  static VecGeneric fma(VecGeneric a, VecGeneric b, VecGeneric c) {
    if constexpr (!EXACT) return {a.v * b.v + c.v};
    VecGeneric r;
    for (int i = 0; i < L; ++i) r.v[i] = std::fma(a.v[i], b.v[i], c.v[i]);
    return r;
  }
  VecGeneric operator+(VecGeneric o) const { return {v + o.v}; }
  VecGeneric operator*(VecGeneric o) const { return {v * o.v}; }
  static VecGeneric where_positive(VecGeneric y, VecGeneric g) {  // y <= 0 ? 0 : g, which lets g pass where y is NaN
    VecGeneric r;
    for (int i = 0; i < L; ++i) r.v[i] = y.v[i] <= 0 ? A(0) : g.v[i];
    return r;
  }
  VecGeneric at_least(VecGeneric floor) const {  // keeps NaN
    VecGeneric r;
    for (int i = 0; i < L; ++i) r.v[i] = v[i] < floor.v[i] ? floor.v[i] : v[i];
    return r;
  }
  VecGeneric relu() const {  // keeps NaN
    VecGeneric r;
    for (int i = 0; i < L; ++i) r.v[i] = v[i] < 0 ? A(0) : v[i];
    return r;
  }
};
