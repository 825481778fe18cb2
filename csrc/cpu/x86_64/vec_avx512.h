// Sixteen floats in AVX-512 registers. Included inside the namespace of one instruction set.

struct VecAvx512 {
  using A = float;
  static constexpr int L = 16;
  static constexpr int MR = 8;  // 24 accumulators, 3 operands, 1 broadcast, of 32 registers
  static constexpr int PV = 3;
  static constexpr bool kTransposes = true;
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
  // The numbers rounded, and what the rounding took away (nothing of infinity and NaN).
  void store_sum(BFloat16* high, BFloat16* low) const { store_sum(high, low, L); }
  void store_sum(BFloat16* high, BFloat16* low, int n) const {
    const __m256i rounded = narrow(BFloat16{});
    const __m512 rest = _mm512_sub_ps(v, widen_bf16(rounded).v);
    const VecAvx512 kept = {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(rest, rest, _CMP_ORD_Q), rest)};
    _mm256_mask_storeu_epi16(high, mask(n), rounded);
    _mm256_mask_storeu_epi16(low, mask(n), kept.narrow(BFloat16{}));
  }
  // Integers in the place of floats.
  static VecAvx512 load_integers(const float* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }
  static VecAvx512 load_integers(const float* p, int n) {
    return {_mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(mask(n), p))};
  }
  // Rounded to integers from 0 to 255, ties to even; NaN becomes 0.
  __m512i rounded() const { return _mm512_cvtps_epu32(_mm512_max_ps(v, _mm512_setzero_ps())); }
  void store_bytes(uint8_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtusepi32_epi8(rounded()));
  }
  void store_bytes(uint8_t* p, int n) const { _mm512_mask_cvtusepi32_storeu_epi8(p, mask(n), rounded()); }
  static VecAvx512 pick(const float* p, const int32_t* index) {  // two registers hold all that index can name
    return {_mm512_permutex2var_ps(_mm512_loadu_ps(p), _mm512_loadu_si512(index), _mm512_loadu_ps(p + 16))};
  }
  static VecAvx512 shuffle(const float* p, const int32_t* index) {  // one register holds all that index can name
    return {_mm512_permutexvar_ps(_mm512_loadu_si512(index), _mm512_loadu_ps(p))};
  }
  // Where value is larger than best, or kNaN and the first NaN, it takes best's place and c that of label.
  template <bool kNaN>
  static void keep_larger(VecAvx512& best, VecAvx512& label, VecAvx512 value, VecAvx512 c) {
    __mmask16 larger = _mm512_cmp_ps_mask(value.v, best.v, kNaN ? _CMP_NLE_UQ : _CMP_GT_OQ);
    if (kNaN) larger = _mm512_mask_cmp_ps_mask(larger, best.v, best.v, _CMP_ORD_Q);
    best.v = _mm512_mask_mov_ps(best.v, larger, value.v);
    label.v = _mm512_mask_mov_ps(label.v, larger, c.v);
  }
  // Sixteen rows of sixteen values become columns.
  static void transpose(VecAvx512 (&rows)[16]) {
    __m512 pairs[16];
    for (int i = 0; i < 16; i += 2) {
      pairs[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
      pairs[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
    }
    __m512 quads[16];  // [4 * i + j]: in 128-bit lane l, column 4 * l + j of rows 4 * i to 4 * i + 3
    for (int i = 0; i < 16; i += 4)
      for (int j = 0; j < 2; ++j) {
        const __m512d low = _mm512_castps_pd(pairs[i + j]), high = _mm512_castps_pd(pairs[i + 2 + j]);
        quads[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
        quads[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
      }
    for (int j = 0; j < 4; ++j) {  // a 4 x 4 transposition of 128-bit lanes
      const __m512 a = _mm512_shuffle_f32x4(quads[j], quads[4 + j], 0x44);
      const __m512 b = _mm512_shuffle_f32x4(quads[j], quads[4 + j], 0xee);
      const __m512 c = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], 0x44);
      const __m512 d = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], 0xee);
      rows[j].v = _mm512_shuffle_f32x4(a, c, 0x88);
      rows[4 + j].v = _mm512_shuffle_f32x4(a, c, 0xdd);
      rows[8 + j].v = _mm512_shuffle_f32x4(b, d, 0x88);
      rows[12 + j].v = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
  }
  // Lane i is the sum of the lanes of sums[i].
  static VecAvx512 sum_each(VecAvx512 (&sums)[16]) {
    __m512 quads[4];  // [i]: in each 128-bit lane, what that lane adds to the sums 4 * i to 4 * i + 3
    for (int i = 0; i < 4; ++i) {
      const VecAvx512* s = sums + 4 * i;
      const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(s[0].v, s[1].v), _mm512_unpackhi_ps(s[0].v, s[1].v));
      const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(s[2].v, s[3].v), _mm512_unpackhi_ps(s[2].v, s[3].v));
      const __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
      quads[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    const auto add_lanes = [](__m512 x, __m512 y) {
      return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
    };
    return {add_lanes(add_lanes(quads[0], quads[1]), add_lanes(quads[2], quads[3]))};
  }
  // 2 or 4 channels of 8 or 4 pixels that lie `step` elements apart.
  template <int T>
  static VecAvx512 load_pixels(const float* p, int64_t step) {
    const auto quad = [=](int i) {
      if constexpr (T == 4) return _mm_loadu_ps(p + i * step);
      const __m128 low = _mm_loadl_pi(_mm_setzero_ps(), reinterpret_cast<const __m64*>(p + 2 * i * step));
      return _mm_loadh_pi(low, reinterpret_cast<const __m64*>(p + (2 * i + 1) * step));
    };
    const __m256 low = _mm256_insertf128_ps(_mm256_castps128_ps256(quad(0)), quad(1), 1);
    const __m256 high = _mm256_insertf128_ps(_mm256_castps128_ps256(quad(2)), quad(3), 1);
    return {_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1)};
  }
  template <int T>
  void store_pixels(float* p, int64_t step) const {
    const __m128 quads[4] = {_mm512_castps512_ps128(v), _mm512_extractf32x4_ps(v, 1), _mm512_extractf32x4_ps(v, 2),
                             _mm512_extractf32x4_ps(v, 3)};
    for (int i = 0; i < 4; ++i) {
      if constexpr (T == 4) {
        _mm_storeu_ps(p + i * step, quads[i]);
      } else {
        _mm_storel_pi(reinterpret_cast<__m64*>(p + 2 * i * step), quads[i]);
        _mm_storeh_pi(reinterpret_cast<__m64*>(p + (2 * i + 1) * step), quads[i]);
      }
    }
  }
  static VecAvx512 fma(VecAvx512 a, VecAvx512 b, VecAvx512 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static VecAvx512 fnma(VecAvx512 a, VecAvx512 b, VecAvx512 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a b
  VecAvx512 operator+(VecAvx512 o) const { return {_mm512_add_ps(v, o.v)}; }
  VecAvx512 operator-(VecAvx512 o) const { return {_mm512_sub_ps(v, o.v)}; }
  VecAvx512 operator*(VecAvx512 o) const { return {_mm512_mul_ps(v, o.v)}; }
  static VecAvx512 where_positive(VecAvx512 y, VecAvx512 g) {  // y <= 0 ? 0 : g, which lets g pass where y is NaN
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y.v, _mm512_setzero_ps(), _CMP_NLE_UQ), g.v)};
  }
  VecAvx512 at_least(VecAvx512 floor) const { return {_mm512_max_ps(floor.v, v)}; }  // keeps NaN
  VecAvx512 relu() const { return {_mm512_max_ps(_mm512_setzero_ps(), v)}; }  // second operand: keeps NaN
};
