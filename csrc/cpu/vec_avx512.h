// Sixteen floats in AVX-512 registers. Included inside the namespace of one instruction set.

struct VecAvx512 {
  using A = float;
  static constexpr int L = 16;
  static constexpr int MR = 8;  // 24 accumulators, 3 operands, 1 broadcast, of 32 registers
  static constexpr int PV = 3;
  __m512 v;

  static __mmask16 mask(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static VecAvx512 zero() { return {_mm512_setzero_ps()}; }
  static VecAvx512 set1(float x) { return {_mm512_set1_ps(x)}; }
  static VecAvx512 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static VecAvx512 load(const float* p, int n) { return {_mm512_maskz_loadu_ps(mask(n), p)}; }
  static VecAvx512 widen_bf16(__m256i x) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
  }
  static __m256i load_16bit(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static __m256i load_16bit(const void* p, int n) { return _mm256_maskz_loadu_epi16(mask(n), p); }
  static VecAvx512 load(const BFloat16* p) { return widen_bf16(load_16bit(p)); }
  static VecAvx512 load(const BFloat16* p, int n) { return widen_bf16(load_16bit(p, n)); }
  static VecAvx512 load(const Float16* p) { return {_mm512_cvtph_ps(load_16bit(p))}; }
  static VecAvx512 load(const Float16* p, int n) { return {_mm512_cvtph_ps(load_16bit(p, n))}; }

  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, int n) const { _mm512_mask_storeu_ps(p, mask(n), v); }
  __m256i narrow(BFloat16) const {  // round to nearest even, NaN stays NaN
#ifdef HRNET_FAST_HAS_BF16_INSTRUCTIONS
    const __m256bh packed = _mm512_cvtneps_pbh(v);
    __m256i bits;
    std::memcpy(&bits, &packed, sizeof(bits));
    return bits;
#else
    const __m512i u = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, is_nan, quiet), 16));
#endif
  }
  __m256i narrow(Float16) const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  template <class T>
  void store(T* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(T{}));
  }
  template <class T>
  void store(T* p, int n) const {
    _mm256_mask_storeu_epi16(p, mask(n), narrow(T{}));
  }
  static VecAvx512 pick(const float* p, const int32_t* index) {  // two registers hold all that index can name
    return {_mm512_permutex2var_ps(_mm512_loadu_ps(p), _mm512_loadu_si512(index), _mm512_loadu_ps(p + 16))};
  }
  static VecAvx512 fma(VecAvx512 a, VecAvx512 b, VecAvx512 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  VecAvx512 operator+(VecAvx512 o) const { return {_mm512_add_ps(v, o.v)}; }
  VecAvx512 operator*(VecAvx512 o) const { return {_mm512_mul_ps(v, o.v)}; }
  VecAvx512 relu() const { return {_mm512_max_ps(_mm512_setzero_ps(), v)}; }  // second operand: keeps NaN
};
