// Eight floats in AVX2 registers. Included inside the namespace of one instruction set.

struct VecAvx2 {
  using A = float;
  static constexpr int L = 8;
  static constexpr int MR = 4;  // 12 accumulators, 3 operands, 1 broadcast: the 16 registers
  static constexpr int PV = 3;
  static constexpr bool kTransposes = false;
  __m256 v;

  static __m256i mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static VecAvx2 zero() { return {_mm256_setzero_ps()}; }
  static VecAvx2 set1(float x) { return {_mm256_set1_ps(x)}; }
  static VecAvx2 load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static VecAvx2 load(const float* p, int n) { return {_mm256_maskload_ps(p, mask(n))}; }
  static __m128i load_16bit(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static __m128i load_16bit(const void* p, int n) {
    alignas(16) uint16_t buffer[8] = {};
    std::memcpy(buffer, p, 2 * n);
    return load_16bit(buffer);
  }
  static VecAvx2 widen_bf16(__m128i x) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16))};
  }
  static VecAvx2 load(const BFloat16* p) { return widen_bf16(load_16bit(p)); }
  static VecAvx2 load(const BFloat16* p, int n) { return widen_bf16(load_16bit(p, n)); }
  static VecAvx2 load(const Float16* p) { return {_mm256_cvtph_ps(load_16bit(p))}; }
  static VecAvx2 load(const Float16* p, int n) { return {_mm256_cvtph_ps(load_16bit(p, n))}; }

  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(float* p, int n) const { _mm256_maskstore_ps(p, mask(n), v); }
  __m128i narrow(BFloat16) const {  // round to nearest even, NaN stays NaN
    const __m256i u = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    const __m256i r = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    return _mm256_castsi256_si128(packed);
  }
  __m128i narrow(Float16) const { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  template <class T>
  void store(T* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(T{}));
  }
  template <class T>
  void store(T* p, int n) const {
    const __m128i packed = narrow(T{});
    std::memcpy(p, &packed, 2 * n);
  }
  static VecAvx2 pick(const float* p, const int32_t* index) {
    return {_mm256_i32gather_ps(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)), 4)};
  }
  static VecAvx2 shuffle(const float* p, const int32_t* index) {  // one register holds all that index can name
    return {_mm256_permutevar8x32_ps(_mm256_loadu_ps(p), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)))};
  }
  // Where value is larger than best, or kNaN and the first NaN, it takes best's place and c that of label.
  template <bool kNaN>
  static void keep_larger(VecAvx2& best, VecAvx2& label, VecAvx2 value, VecAvx2 c) {
    __m256 larger = _mm256_cmp_ps(value.v, best.v, kNaN ? _CMP_NLE_UQ : _CMP_GT_OQ);
    if (kNaN) larger = _mm256_and_ps(larger, _mm256_cmp_ps(best.v, best.v, _CMP_ORD_Q));
    best.v = _mm256_blendv_ps(best.v, value.v, larger);
    label.v = _mm256_blendv_ps(label.v, c.v, larger);
  }
  static VecAvx2 fma(VecAvx2 a, VecAvx2 b, VecAvx2 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static VecAvx2 fnma(VecAvx2 a, VecAvx2 b, VecAvx2 c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a b
  VecAvx2 operator-(VecAvx2 o) const { return {_mm256_sub_ps(v, o.v)}; }
  VecAvx2 operator+(VecAvx2 o) const { return {_mm256_add_ps(v, o.v)}; }
  VecAvx2 operator*(VecAvx2 o) const { return {_mm256_mul_ps(v, o.v)}; }
  static VecAvx2 where_positive(VecAvx2 y, VecAvx2 g) {  // y <= 0 ? 0 : g, which lets g pass where y is NaN
    return {_mm256_and_ps(_mm256_cmp_ps(y.v, _mm256_setzero_ps(), _CMP_NLE_UQ), g.v)};
  }
  VecAvx2 at_least(VecAvx2 floor) const { return {_mm256_max_ps(floor.v, v)}; }  // keeps NaN
  // The numbers rounded, and what the rounding took away (nothing of infinity and NaN).
  void store_sum(BFloat16* high, BFloat16* low, int n) const {
    const __m128i rounded = narrow(BFloat16{});
    const __m256 rest = _mm256_sub_ps(v, widen_bf16(rounded).v);
    const VecAvx2 kept = {_mm256_and_ps(_mm256_cmp_ps(rest, rest, _CMP_ORD_Q), rest)};
    std::memcpy(high, &rounded, 2 * n);
    kept.store(low, n);
  }
  // Integers in the place of floats.
  static VecAvx2 load_integers(const float* p) {
    return {_mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  // Rounded to integers from 0 to 255, ties to even; NaN becomes 0.
  void store_bytes(uint8_t* p, int n) const {
    const __m256 bounded = _mm256_min_ps(_mm256_max_ps(v, _mm256_setzero_ps()), _mm256_set1_ps(255));
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(bounded), _mm256_setzero_si256());
    const __m256i bytes =
        _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words, words), _mm256_setr_epi32(0, 4, 0, 0, 0, 0, 0, 0));
    const __m128i low = _mm256_castsi256_si128(bytes);
    if (n == L)
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p), low);
    else
      std::memcpy(p, &low, n);
  }
  VecAvx2 relu() const { return {_mm256_max_ps(_mm256_setzero_ps(), v)}; }  // second operand: keeps NaN
};
