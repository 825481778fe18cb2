// Tiles of a Winograd convolution in the lanes of AVX2 registers. Included inside the namespace of one instruction set.
//
// Each of the eight lanes holds a tile of its own, from anywhere in the images: rows of tiles are read and written in
// pieces of 128 bits, so that tiles need not lie side by side, and narrow images leave no lane empty. Pieces of tiles i
// and 4 + i share a register; 4x4 transpositions of both halves go from pixels side by side to tiles side by side.

struct QuadsAvx2 {
  using V = VecAvx2;
  static constexpr int L = 8, kSide = 1, kPlaces = 8;
  static constexpr int kWide = 2;  // 6 x 2 sums, 2 operands, 1 factor: 15 of 16 registers
  static constexpr int kMost = 8;  // registers of tiles in a block
  static constexpr int64_t kBlockBytes = 260 << 10, kPanelBytes = 200 << 10, kProductBytes = 96 << 10;
  // Estimated from 14 shapes, 18 channels at 128x128 to 256 at 8x6, on one busy core of a Zen 3. Reading is that of
  // AVX-512: with weights out of the caches 0.25 to 0.5 were seen.
  static constexpr ConvolutionCosts kCosts = {L, kSide, 0.6, 270, 690, 0.9};

  struct Mask {  // lanes first .. last - 1
    int64_t first, last;
    bool full() const { return first <= 0 && last >= L; }
    __m256i lanes() const {
      const auto clamp = [](int64_t n) { return _mm256_set1_epi32(static_cast<int>(n < 0 ? 0 : n > L ? L : n)); };
      const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
      return _mm256_andnot_si256(_mm256_cmpgt_epi32(clamp(first), lane), _mm256_cmpgt_epi32(clamp(last), lane));
    }
    int begin() const { return static_cast<int>(first < 0 ? 0 : first); }
    int end() const { return static_cast<int>(last > L ? L : last); }
  };
  static Mask mask(int64_t first, int64_t last) { return {first, last}; }

  static V load(const float* p, Mask m) { return m.full() ? V::load(p) : V{_mm256_maskload_ps(p, m.lanes())}; }
  template <class T>
  static V load(const T* p, Mask m) {
    if (m.full()) return V::load(p);
    T some[L] = {};
    for (int i = m.begin(); i < m.end(); ++i) some[i] = p[i];
    return V::load(some);
  }
  static V where(Mask m, V x, V otherwise) {
    return m.full() ? x : V{_mm256_blendv_ps(otherwise.v, x.v, _mm256_castsi256_ps(m.lanes()))};
  }
  static void store(float* p, Mask m, V x) { m.full() ? x.store(p) : _mm256_maskstore_ps(p, m.lanes(), x.v); }
  template <class T>
  static void store(T* p, Mask m, V x) {
    if (m.full()) return x.store(p);
    T all[L];
    x.store(all);
    for (int i = m.begin(); i < m.end(); ++i) p[i] = all[i];
  }

  // Four elements of each of two tiles.
  static V load(const float* a, const float* b) {
    return {_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a)), _mm_loadu_ps(b), 1)};
  }
  template <class T>
  static V load(const T* a, const T* b) {
    uint64_t low, high;
    std::memcpy(&low, a, sizeof(low)), std::memcpy(&high, b, sizeof(high));
    return widen(low, high, T{});
  }
  static V widen(uint64_t low, uint64_t high, BFloat16) { return V::widen_bf16(_mm_set_epi64x(high, low)); }
  static V widen(uint64_t low, uint64_t high, Float16) { return {_mm256_cvtph_ps(_mm_set_epi64x(high, low))}; }

  // Which of a tile's columns lie inside of the image.
  template <int M>
  struct Columns {
    int32_t inside[8];  // -1 or 0 for each column that is read
    int begin, end, stores;
  };
  template <int M>
  static Columns<M> columns(int64_t x, int64_t w) {
    Columns<M> c;
    for (int k = 0; k < 8; ++k) c.inside[k] = x - 1 + k >= 0 && x - 1 + k < w && k < M + 2 ? -1 : 0;
    c.begin = x == 0 ? 1 : 0;
    c.end = static_cast<int>(w + 1 - x < M + 2 ? w + 1 - x : M + 2);
    c.stores = static_cast<int>(w - x < M ? w - x : M);
    return c;
  }
  template <int M>
  static bool all_columns(int64_t x, int64_t w) {
    return x > 0 && x + M < w;
  }

  template <int M>
  static V load(const float* a, const Columns<M>& in_a, const float* b, const Columns<M>& in_b, int first) {
    const auto some = [first](const float* p, const Columns<M>& in) {
      return _mm_maskload_ps(p + first, _mm_loadu_si128(reinterpret_cast<const __m128i*>(in.inside + first)));
    };
    return {_mm256_insertf128_ps(_mm256_castps128_ps256(some(a, in_a)), some(b, in_b), 1)};
  }
  template <int M, class T>
  static V load(const T* a, const Columns<M>& in_a, const T* b, const Columns<M>& in_b, int first) {
    const auto some = [first](const T* p, const Columns<M>& in) {
      uint64_t bits = 0;
      if (in.begin <= first && in.end >= first + 4)
        std::memcpy(&bits, p + first, sizeof(bits));
      else
        for (int k = in.begin > first ? in.begin : first; k < in.end && k < first + 4; ++k)
          bits |= uint64_t{p[k].bits} << 16 * (k - first);
      return bits;
    };
    return widen(some(a, in_a), some(b, in_b), T{});
  }

  // to[k]: column k of the tiles, of the row that lies `offset` elements after where they begin.
  template <int M, bool INNER, class T, class Inside>
  static void read(const T* const (&at)[kPlaces], const Columns<M> (&columns)[kPlaces], int64_t offset, int64_t ahead,
                   Inside&& inside, V* to) {
    V first[4], last[4];
    if constexpr (INNER) {
      for (int i = 0; i < 4; ++i) {
        const T *a = at[i] + offset, *b = at[4 + i] + offset;
        if (i == 0) __builtin_prefetch(a + ahead), __builtin_prefetch(b + ahead);  // mostly four tiles share a line
        first[i] = load(a, b);
        if constexpr (M == 4) last[i] = load(a + 2, b + 2);
      }
    } else {
      static const T kNothing[8] = {};
      for (int i = 0; i < 4; ++i) {
        const T* a = inside(i) ? at[i] + offset : kNothing;
        const T* b = inside(4 + i) ? at[4 + i] + offset : kNothing;
        if (i == 0) __builtin_prefetch(a + ahead), __builtin_prefetch(b + ahead);
        first[i] = load(a, columns[i], b, columns[4 + i], 0);
        if constexpr (M == 4) last[i] = load(a, columns[i], b, columns[4 + i], 2);
      }
    }
    transpose(first, to);
    if constexpr (M == 4) {
      const __m256 low = _mm256_unpackhi_ps(last[0].v, last[1].v), high = _mm256_unpackhi_ps(last[2].v, last[3].v);
      to[4].v = _mm256_shuffle_ps(low, high, 0x44);
      to[5].v = _mm256_shuffle_ps(low, high, 0xee);
    }
  }
  static void transpose(const V (&rows)[4], V* to) {
    const __m256 a = _mm256_unpacklo_ps(rows[0].v, rows[1].v), b = _mm256_unpackhi_ps(rows[0].v, rows[1].v);
    const __m256 c = _mm256_unpacklo_ps(rows[2].v, rows[3].v), d = _mm256_unpackhi_ps(rows[2].v, rows[3].v);
    to[0].v = _mm256_shuffle_ps(a, c, 0x44);
    to[1].v = _mm256_shuffle_ps(a, c, 0xee);
    to[2].v = _mm256_shuffle_ps(b, d, 0x44);
    to[3].v = _mm256_shuffle_ps(b, d, 0xee);
  }

  // Writes row r of the tiles: act(y + bias + residual).
  template <int M, class Places, class T>
  static void write(const Places& places, int r, const V (&y)[M], V bias, bool relu, int64_t row, T* to,
                    const T* residual) {
    V pixels[4];
    if constexpr (M == 4) {
      transpose(y, pixels);
    } else {  // a tile's two pixels, and two numbers that nobody reads
      const __m256 low = _mm256_unpacklo_ps(y[0].v, y[1].v), high = _mm256_unpackhi_ps(y[0].v, y[1].v);
      pixels[0].v = low, pixels[1].v = _mm256_permute_ps(low, 0xee);
      pixels[2].v = high, pixels[3].v = _mm256_permute_ps(high, 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      const auto &a = places.at[i], &b = places.at[4 + i];
      V out = pixels[i] + bias;
      if (places.whole) {
        if (residual != nullptr)
          out = out + V{_mm256_insertf128_ps(_mm256_castps128_ps256(load_row<M>(residual + row + a.residual)),
                                             load_row<M>(residual + row + b.residual), 1)};
        if (relu) out = out.relu();
        store_row<M>(to + row + a.output, _mm256_castps256_ps128(out.v));
        store_row<M>(to + row + b.output, _mm256_extractf128_ps(out.v, 1));
      } else {
        if (residual != nullptr)
          out = out + V{_mm256_insertf128_ps(_mm256_castps128_ps256(load_some(residual + row, a, r)),
                                             load_some(residual + row, b, r), 1)};
        if (relu) out = out.relu();
        store_some(to + row, a, r, _mm256_castps256_ps128(out.v));
        store_some(to + row, b, r, _mm256_extractf128_ps(out.v, 1));
      }
    }
  }
  // A tile's row.
  template <int M>
  static __m128 load_row(const float* p) {
    if constexpr (M == 4) return _mm_loadu_ps(p);
    return _mm_castpd_ps(_mm_load_sd(reinterpret_cast<const double*>(p)));
  }
  template <int M, class T>
  static __m128 load_row(const T* p) {
    if constexpr (M == 4) return load4(p);
    T some[4] = {p[0], p[1], p[0], p[1]};
    return load4(some);
  }
  template <int M, class T>
  static void store_row(T* p, __m128 x) {
    if constexpr (std::is_same_v<T, float>) {
      M == 4 ? _mm_storeu_ps(p, x) : _mm_storel_pi(reinterpret_cast<__m64*>(p), x);
    } else {
      const uint64_t bits = static_cast<uint64_t>(_mm_cvtsi128_si64(V{_mm256_castps128_ps256(x)}.narrow(T{})));
      std::memcpy(p, &bits, M * sizeof(T));
    }
  }
  template <class Place, class T>
  static __m128 load_some(const T* from, const Place& place, int r) {
    const int n = r < place.rows ? place.columns.stores : 0;
    if (n == 4) return load4(from + place.residual);
    T some[4] = {};
    for (int k = 0; k < n; ++k) some[k] = from[place.residual + k];
    return load4(some);
  }
  static __m128 load4(const float* p) { return _mm_loadu_ps(p); }
  static __m128 load4(const BFloat16* p) {
    const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16));
  }
  static __m128 load4(const Float16* p) { return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }

  template <class Place, class T>
  static void store_some(T* to, const Place& place, int r, __m128 x) {
    const int n = r < place.rows ? place.columns.stores : 0;
    T* p = to + place.output;
    if constexpr (std::is_same_v<T, float>) {
      if (n == 4) return _mm_storeu_ps(p, x);
      if (n >= 2) _mm_storel_pi(reinterpret_cast<__m64*>(p), x);
      if (n == 1) _mm_store_ss(p, x);
      if (n == 3) _mm_store_ss(p + 2, _mm_movehl_ps(x, x));
    } else {
      const __m128i bits = V{_mm256_castps128_ps256(x)}.narrow(T{});
      if (n == 4) return _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bits);
      T some[8];
      _mm_storeu_si128(reinterpret_cast<__m128i*>(some), bits);
      for (int k = 0; k < n; ++k) p[k] = some[k];
    }
  }

  // Pixels 0, 2, 4, ... and 1, 3, 5, ... of two registers.
  static void deinterleave(V a, V b, V& even, V& odd) {
    const auto in_order = [](__m256 x) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xd8)); };
    even.v = in_order(_mm256_shuffle_ps(a.v, b.v, 0x88));
    odd.v = in_order(_mm256_shuffle_ps(a.v, b.v, 0xdd));
  }
};
