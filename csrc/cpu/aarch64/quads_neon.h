// Tiles of a Winograd convolution in the lanes of NEON registers. Included inside the namespace of one instruction set.
//
// As with AVX2 each lane holds a tile of its own, from anywhere in the images: rows of tiles are read and written one
// by one, and 4x4 transpositions go from pixels side by side to tiles side by side.

struct QuadsNeon {
  using V = VecNeon;
  static constexpr int L = 4, kSide = 1, kPlaces = 4;
  static constexpr int kWide = 4;  // 6 x 4 sums, 4 operands, 1 factor: 29 of 32 registers
  static constexpr int kMost = 16;  // registers of tiles in a block
  // Of AVX2, whose tiles lie in the same way; not measured on ARM.
  static constexpr int64_t kBlockBytes = 260 << 10, kPanelBytes = 200 << 10, kProductBytes = 96 << 10;
  static constexpr ConvolutionCosts kCosts = {L, kSide, 0.6, 270, 690, 0.9};

  struct Mask {  // lanes first .. last - 1
    int64_t first, last;
    bool full() const { return first <= 0 && last >= L; }
    int begin() const { return static_cast<int>(first < 0 ? 0 : first); }
    int end() const { return static_cast<int>(last > L ? L : last); }
  };
  static Mask mask(int64_t first, int64_t last) { return {first, last}; }
  template <class T>
  static V load(const T* p, Mask m) {
    return m.full() ? V::load(p) : load_some(p, m.begin(), m.end());
  }
  template <class T>
  static V load_some(const T* p, int begin, int end) {
    T some[L] = {};
    for (int i = begin; i < end; ++i) some[i] = p[i];
    return V::load(some);
  }
  static V where(Mask m, V x, V otherwise) {
    if (m.full()) return x;
    float from[L], to[L];
    x.store(from), otherwise.store(to);
    for (int i = m.begin(); i < m.end(); ++i) to[i] = from[i];
    return V::load(to);
  }
  template <class T>
  static void store(T* p, Mask m, V x) {
    if (m.full()) return x.store(p);
    T all[L];
    x.store(all);
    for (int i = m.begin(); i < m.end(); ++i) p[i] = all[i];
  }

  // Which of a tile's columns lie inside of the image.
  template <int M>
  struct Columns {
    int begin, end, stores;
  };
  template <int M>
  static Columns<M> columns(int64_t x, int64_t w) {
    return {x == 0 ? 1 : 0, static_cast<int>(w + 1 - x < M + 2 ? w + 1 - x : M + 2),
            static_cast<int>(w - x < M ? w - x : M)};
  }
  template <int M>
  static bool all_columns(int64_t x, int64_t w) {
    return x > 0 && x + M < w;
  }

  // to[k]: column k of the tiles, of the row that lies `offset` elements after where they begin.
  template <int M, bool INNER, class T, class Inside>
  static void read(const T* const (&at)[kPlaces], const Columns<M> (&columns)[kPlaces], int64_t offset, int64_t ahead,
                   Inside&& inside, V* to) {
    V first[4], last[4];
    for (int i = 0; i < 4; ++i) {
      const T* p = at[i] + offset;
      if (i == 0) __builtin_prefetch(p + ahead);  // mostly four tiles share a line
      const Columns<M>& c = columns[i];
      const auto four = [&](int k) {  // columns from k on
        if (INNER || (c.begin <= k && c.end >= k + 4)) return V::load(p + k);
        const int end = c.end - k;
        return load_some(p + k, c.begin > k ? c.begin - k : 0, end < 4 ? end : 4);
      };
      const bool there = INNER || inside(i);
      first[i] = there ? four(0) : V::zero();
      if constexpr (M == 4) last[i] = there ? four(2) : V::zero();
    }
    transpose(first, to);
    if constexpr (M == 4) {
      const float32x4_t low = vzip2q_f32(last[0].v, last[1].v), high = vzip2q_f32(last[2].v, last[3].v);
      to[4] = lower(low, high), to[5] = upper(low, high);
    }
  }
  // Both lower halves, and both upper ones.
  static V lower(float32x4_t a, float32x4_t b) { return {vcombine_f32(vget_low_f32(a), vget_low_f32(b))}; }
  static V upper(float32x4_t a, float32x4_t b) { return {vcombine_f32(vget_high_f32(a), vget_high_f32(b))}; }
  static void transpose(const V (&rows)[4], V* to) {
    const float32x4_t a = vzip1q_f32(rows[0].v, rows[1].v), b = vzip2q_f32(rows[0].v, rows[1].v);
    const float32x4_t c = vzip1q_f32(rows[2].v, rows[3].v), d = vzip2q_f32(rows[2].v, rows[3].v);
    to[0] = lower(a, c), to[1] = upper(a, c), to[2] = lower(b, d), to[3] = upper(b, d);
  }

  // Writes row r of the tiles: act(y + bias + residual).
  template <int M, class Places, class T>
  static void write(const Places& places, int r, const V (&y)[M], V bias, bool relu, int64_t row, T* to,
                    const T* residual) {
    V pixels[4];
    if constexpr (M == 4) {
      transpose(y, pixels);
    } else {  // a tile's two pixels, and two numbers that nobody reads
      const float32x4_t low = vzip1q_f32(y[0].v, y[1].v), high = vzip2q_f32(y[0].v, y[1].v);
      pixels[0].v = low, pixels[1] = upper(low, low), pixels[2].v = high, pixels[3] = upper(high, high);
    }
    for (int i = 0; i < 4; ++i) {
      const auto& tile = places.at[i];
      const int count = places.whole ? M : r < tile.rows ? tile.columns.stores : 0;
      V out = pixels[i] + bias;
      if (residual != nullptr) out = out + V::load(residual + row + tile.residual, count);
      if (relu) out = out.relu();
      out.store(to + row + tile.output, count);
    }
  }

  // Pixels 0, 2, 4, ... and 1, 3, 5, ... of two registers.
  static void deinterleave(V a, V b, V& even, V& odd) {
    even.v = vuzp1q_f32(a.v, b.v);
    odd.v = vuzp2q_f32(a.v, b.v);
  }
};
