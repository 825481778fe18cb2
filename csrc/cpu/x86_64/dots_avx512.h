// Sixteen sums of products of bytes by AVX512-VNNI. Included inside the namespace of one instruction set.

struct DotsAvx512 {
  using V = VecAvx512;
  using Sums = __m512i;
  static constexpr int L = 16, kSums = 24;  // of 32 registers
  static constexpr bool kOffset = false;
  static Sums zero() { return _mm512_setzero_si512(); }
  static Sums load(const char* p) { return _mm512_loadu_si512(p); }
  static void store(char* p, Sums x) { _mm512_storeu_si512(p, x); }
  static Sums broadcast(const char* p) { return _mm512_set1_epi32(four_bytes(p)); }
  static Sums dot(Sums sums, Sums a, Sums w) { return _mm512_dpbusd_epi32(sums, a, w); }
  // The numbers of pairs in bfloat16.
  static void halves(Sums x, V& even, V& odd) {
    even.v = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    odd.v = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000))));
  }
};
