// Eight sums of products of bytes. Included inside the namespace of one instruction set, which may have AVX-VNNI.

struct DotsAvx2 {
  using V = VecAvx2;
  using Sums = __m256i;
  static constexpr int L = 8, kSums = 12;  // of 16 registers
  static constexpr bool kOffset = false;
  static Sums zero() { return _mm256_setzero_si256(); }
  static Sums load(const char* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store(char* p, Sums x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
  static Sums broadcast(const char* p) { return _mm256_set1_epi32(four_bytes(p)); }
  static Sums dot(Sums sums, Sums a, Sums w) {
#ifdef HRNET_FAST_HAS_AVX_VNNI
    return _mm256_dpbusd_avx_epi32(sums, a, w);
#else
    // Pairs of products do not fit 16 bits: those of the lower seven bits, and of the highest, do.
    const Sums high = _mm256_set1_epi8(static_cast<char>(0x80)), ones = _mm256_set1_epi16(1);
    const Sums low = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_andnot_si256(high, a), w), ones);
    return _mm256_add_epi32(
        sums, _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_and_si256(high, a), w), ones)));
#endif
  }
  // The numbers of pairs in bfloat16.
  static void halves(Sums x, V& even, V& odd) {
    even.v = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
    odd.v = _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000))));
  }
};
