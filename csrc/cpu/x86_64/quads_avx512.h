// Tiles of a Winograd convolution in the lanes of AVX-512 registers. Included inside the namespace of one instruction
// set.
//
// A quad is four tiles side by side; a register holds one element of the sixteen tiles of four quads, lane 4 * quad +
// tile. In memory the pixels of a quad's row lie side by side: `split` and `merge` go from the one order to the other.

struct QuadsAvx512 {
  using V = VecAvx512;
  using Mask = __mmask16;
  static constexpr int L = 16, kSide = 4, kPlaces = 4;  // tiles side by side; such quads in a register
  static constexpr int kWide = 4;  // 6 x 4 sums, 4 operands, 1 factor, of 32 registers
  static constexpr int kMost = 4;  // registers of tiles in a block
  static constexpr int64_t kBlockBytes = 600 << 10, kPanelBytes = 400 << 10, kProductBytes = 0;
  // Fitted to 24 shapes from 18 channels at 128x128 to 384 at 7x7, two cores of a Zen 5.
  static constexpr ConvolutionCosts kCosts = {L, kSide, 0.6, 100, 370, 0.77};

  static Mask mask(int64_t first, int64_t last) {  // lanes first .. last - 1
    const auto upto = [](int64_t n) { return n <= 0 ? 0u : n >= 16 ? 0xffffu : (1u << n) - 1u; };
    return static_cast<Mask>(upto(last) & ~upto(first));
  }
  static V load(const float* p, Mask m) { return {_mm512_maskz_loadu_ps(m, p)}; }
  static V load(const BFloat16* p, Mask m) { return V::widen_bf16(_mm256_maskz_loadu_epi16(m, p)); }
  static V load(const Float16* p, Mask m) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, p))}; }
  static V where(Mask m, V x, V otherwise) { return {_mm512_mask_mov_ps(otherwise.v, m, x.v)}; }
  static void store(float* p, Mask m, V x) { _mm512_mask_storeu_ps(p, m, x.v); }
  template <class T>
  static void store(T* p, Mask m, V x) {
    _mm256_mask_storeu_epi16(p, m, x.narrow(T{}));
  }

  // Which of a quad's columns lie inside of the image; with M = 4 two of those read come on their own.
  template <int M>
  struct Columns {
    Mask reads, more, stores;
  };
  template <int M>
  static Columns<M> columns(int64_t x, int64_t w) {
    constexpr int kWidth = kSide * M;
    return {mask(1 - x, w + 1 - x), mask(0, w - 3 - x), mask(0, w - x < kWidth ? w - x : kWidth)};
  }
  template <int M>
  static constexpr bool all_columns(int64_t, int64_t) {
    return true;
  }
  // to[k]: column k of the tiles, of the row that lies `offset` elements after where they begin.
  template <int M, bool INNER, class T, class Inside>
  static void read(const T* const (&at)[kPlaces], const Columns<M> (&columns)[kPlaces], int64_t offset, int64_t ahead,
                   Inside&& inside, V* to) {
    V pixels[4], last[4];
    for (int i = 0; i < 4; ++i) {
      if (INNER || inside(i)) {
        __builtin_prefetch(at[i] + offset + ahead);
        pixels[i] = load(at[i] + offset, columns[i].reads);
        if (M == 4) last[i] = load(at[i] + offset + 4, columns[i].more);
      } else {
        pixels[i] = last[i] = V::zero();
      }
    }
    split<M, 4>(pixels, to);
    if constexpr (M == 4) split<M, 2>(last, to + 4);
  }
  // Writes row r of the tiles: act(y + bias + residual).
  template <int M, class Places, class T>
  static void write(const Places& places, int r, const V (&y)[M], V bias, bool relu, int64_t row, T* to,
                    const T* residual) {
    V pixels[4];
    merge(y, pixels);
    for (int i = 0; i < 4; ++i) {
      const auto& quad = places.at[i];
      if (r >= quad.rows) continue;
      V out = pixels[i] + bias;
      if (residual != nullptr) out = out + load(residual + row + quad.residual, quad.columns.stores);
      if (relu) out = out.relu();
      store(to + quad.output + row, quad.columns.stores, out);
    }
  }

  // to[k], lane 4 q + t: pixel STEP * t + k of quad q's row, for the FIRST two or all four k
  template <int STEP, int FIRST>
  static void split(const V (&rows)[4], V* to) {
    alignas(64) static const int32_t kPick[2][16] = {
        {0, STEP, 2 * STEP, 3 * STEP, 16, 16 + STEP, 16 + 2 * STEP, 16 + 3 * STEP,  //
         1, STEP + 1, 2 * STEP + 1, 3 * STEP + 1, 17, 17 + STEP, 17 + 2 * STEP, 17 + 3 * STEP},
        {2, STEP + 2, 2 * STEP + 2, 3 * STEP + 2, 18, 18 + STEP, 18 + 2 * STEP, 18 + 3 * STEP,  //
         3, STEP + 3, 2 * STEP + 3, 3 * STEP + 3, 19, 19 + STEP, 19 + 2 * STEP, 19 + 3 * STEP}};
    for (int k = 0; k < FIRST; k += 2) {
      const __m512i pick = _mm512_load_si512(kPick[k / 2]);
      const __m512 upper = _mm512_permutex2var_ps(rows[0].v, pick, rows[1].v);
      const __m512 lower = _mm512_permutex2var_ps(rows[2].v, pick, rows[3].v);
      to[k].v = _mm512_shuffle_f32x4(upper, lower, 0x44);
      to[k + 1].v = _mm512_shuffle_f32x4(upper, lower, 0xee);
    }
  }
  // rows[q]: the pixels of quad q's row, from pixels k = 0 .. 3 of its tiles
  static void merge(const V (&pixels)[4], V (&rows)[4]) {
    alignas(64) static const int32_t kPick[2][16] = {{0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27},
                                                     {4, 12, 20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31}};
    const __m512 first[2] = {_mm512_shuffle_f32x4(pixels[0].v, pixels[1].v, 0x44),   // quads 0 and 1
                             _mm512_shuffle_f32x4(pixels[2].v, pixels[3].v, 0x44)};
    const __m512 second[2] = {_mm512_shuffle_f32x4(pixels[0].v, pixels[1].v, 0xee),  // quads 2 and 3
                              _mm512_shuffle_f32x4(pixels[2].v, pixels[3].v, 0xee)};
    for (int q = 0; q < 2; ++q) {
      const __m512i pick = _mm512_load_si512(kPick[q]);
      rows[q].v = _mm512_permutex2var_ps(first[0], pick, first[1]);
      rows[2 + q].v = _mm512_permutex2var_ps(second[0], pick, second[1]);
    }
  }
  static void merge(const V (&pixels)[2], V (&rows)[4]) {  // eight pixels a row
    alignas(64) static const int32_t kPick[4][16] = {{0, 16, 1, 17, 2, 18, 3, 19},
                                                     {4, 20, 5, 21, 6, 22, 7, 23},
                                                     {8, 24, 9, 25, 10, 26, 11, 27},
                                                     {12, 28, 13, 29, 14, 30, 15, 31}};
    for (int q = 0; q < 4; ++q)
      rows[q].v = _mm512_permutex2var_ps(pixels[0].v, _mm512_load_si512(kPick[q]), pixels[1].v);
  }
  // Pixels 0, 2, 4, ... and 1, 3, 5, ... of two registers.
  static void deinterleave(V a, V b, V& even, V& odd) {
    const __m512i pick = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    even.v = _mm512_permutex2var_ps(a.v, pick, b.v);
    odd.v = _mm512_permutex2var_ps(a.v, _mm512_add_epi32(pick, _mm512_set1_epi32(1)), b.v);
  }
#ifdef HRNET_FAST_HAS_BF16_INSTRUCTIONS
  // Lane by lane two bfloat16 numbers as the bits of a float: of a the lower ones, of b (which may be null) the upper.
  static V load_pairs(const BFloat16* a, const BFloat16* b, Mask m) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, a));
    if (b == nullptr) return {_mm512_castsi512_ps(low)};
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, b));
    return {_mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)))};
  }
  template <class T>
  static V load_pairs(const T* a, const T* b, Mask m) {
    return join_pairs(load(a, m), b == nullptr ? V::zero() : load(b, m));
  }
  // The same of numbers that are rounded to it.
  static V join_pairs(V a, V b) {
    alignas(64) static const int16_t kPick[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                  8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512bh both = _mm512_cvtne2ps_pbh(b.v, a.v);
    __m512i bits;
    std::memcpy(&bits, &both, sizeof(bits));
    return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(kPick), bits))};
  }
  static V dot_pairs(V a, V b, V sum) {
    __m512bh x, y;
    std::memcpy(&x, &a, sizeof(x));
    std::memcpy(&y, &b, sizeof(y));
    return {_mm512_dpbf16_ps(sum.v, x, y)};
  }
#endif
};
