// Blocks of tiles that stay in the registers over all of a sum, and what convolutions and exchanges make of them.
// Included inside the namespace of one instruction set.

template <int N, class F, int... I>
static inline __attribute__((always_inline)) void unroll(F f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
static inline __attribute__((always_inline)) void unroll(F f) {
  unroll<N>(f, std::make_integer_sequence<int, N>{});
}

// One source of a block: the first tap of the first row of each of the tiles of pixels, and the weights.
template <int MT>
struct TileSource {
  const char* at[MT];
  const char* weight;
  int64_t row, step;  // bytes to the next row of the image, and from an output pixel's taps to those of the next
  int64_t kernel, bytes;  // rows of taps, and the bytes of each
  int64_t chunks() const { return ceil_div(bytes, kTileRow); }
};

// Where the sums of a block go: bytes to the next tile of pixels, the next pixel, the next tile of channels. What a
// tile has more than `next` is written over by the next one.
struct TileTarget {
  char* to;
  int64_t tile, row, next;
  bool add;  // to what lies there
};

// Blocks in tile registers: Tiles has eight of them.
template <class Tiles>
struct TileBlocks {
  static void begin() { Tiles::configure(); }
  static void end() { Tiles::release(); }
  static void written() { Tiles::written(); }

  // Sums over some sources; between(): work for the vector units after each step.
  template <class E, int MT, int NT, class Between>
  static inline __attribute__((always_inline)) void multiply(const TileSource<MT>* sources, int count,
                                                             const TileTarget& t, Between between) {
    each<MT, NT>([&](auto m, auto n) {
      if (t.add)
        Tiles::template load<m() * NT + n()>(t.to + m() * t.tile + n() * t.next, t.row);
      else
        Tiles::template zero<m() * NT + n()>();
    });
    for (int s = 0; s < count; ++s) add<E, MT, NT>(sources[s], between);
    // the last channels first: what they have too many lies where the next pixel's first ones come
    each<MT, NT>([&](auto m, auto n) {
      constexpr int N = NT - 1 - n();
      Tiles::template store<m() * NT + N>(t.to + m() * t.tile + N * t.next, t.row);
    });
  }

 private:
  template <int MT, int NT, class F>
  static inline __attribute__((always_inline)) void each(F f) {
    unroll<MT>([&](auto m) { unroll<NT>([&](auto n) { f(m, n); }); });
  }
  template <class E, int MT, int NT, class Between>
  static inline __attribute__((always_inline)) void add(const TileSource<MT>& source, Between between) {
    constexpr int R = MT * NT;  // the first register that is free
    constexpr bool kKeep = MT > 1 && R + NT + 1 <= 8;  // the weights' tiles stay for all pixels
    constexpr int kA = R + (kKeep ? NT : 0), kSpareA = kKeep ? 8 - kA : 1, kSpareB = 8 - R - kSpareA;
    const char* w = source.weight;
    const int64_t chunks = source.chunks();
    for (int64_t ky = 0; ky < source.kernel; ++ky)
      for (int64_t k = 0; k < chunks; ++k, w += NT * kTileBytes) {
        const int64_t offset = ky * source.row + k * kTileRow;
        if constexpr (kKeep) {
          unroll<NT>([&](auto n) { Tiles::template load<R + n()>(w + n() * kTileBytes, kTileRow); });
          unroll<MT>([&](auto m) {
            constexpr int A = kA + m() % kSpareA;
            Tiles::template load<A>(source.at[m()] + offset, source.step);
            unroll<NT>([&](auto n) { Tiles::template multiply<E, m() * NT + n(), A, R + n()>(); });
          });
        } else {
          static_assert(MT == 1 || kSpareB == 1);
          unroll<MT>([&](auto m) {
            Tiles::template load<kA>(source.at[m()] + offset, source.step);
            unroll<NT>([&](auto i) {  // to and fro: what was loaded last comes first the next time
              constexpr int N = m() % 2 == 0 ? i() : NT - 1 - i(), B = R + 1 + N % kSpareB;
              if constexpr (m() == 0 || i() > 0) Tiles::template load<B>(w + N * kTileBytes, kTileRow);
              Tiles::template multiply<E, m() * NT + N, kA, B>();
            });
          });
        }
        between();
      }
  }
};

// A number that is the sum of two.
template <class V>
static V load_sum(const BFloat16* high, const BFloat16* low) {
  return low == nullptr ? V::load(high) : V::load(high) + V::load(low);
}

// Zeros around rows y0 .. y1 - 1 of an image, but for those behind them; T: bfloat16, or bytes, which have another
// zero.
template <class T>
static void clear_borders(T* image, const Extent& size, int64_t channels, int64_t y0, int64_t y1, uint8_t zero) {
  const int64_t row = size.pitch() * channels;
  if (y0 == 0) std::memset(image, zero, (row + channels) * sizeof(T));
  if (y1 == size.h) std::memset(image + (size.h + 1) * row, zero, (row + channels + kTileRow) * sizeof(T));
}
template <class T>
static void clear_behind(T* image, const Extent& size, int64_t channels, int64_t y, uint8_t zero) {
  std::memset(image + size.at(y, size.w) * channels, zero, channels * sizeof(T));
}

// An image that is written: all its forms from one element on, and their zeros.
struct Written {
  Bordered at;
  Rounding rounding;
  Written(const Bordered& image, int64_t first, const Rounding& r) : at(image), rounding(r) {
    if (at.high != nullptr) at.high += first;
    if (at.low != nullptr) at.low += first;
    if (at.bytes != nullptr) at.bytes += first;
  }
  void clear_around(const Extent& size, int64_t y0, int64_t y1) const {
    if (at.high != nullptr) clear_borders(at.high, size, at.channels, y0, y1, 0);
    if (at.bytes != nullptr) clear_borders(at.bytes, size, at.channels, y0, y1, rounding.zero);
  }
  void clear_after(const Extent& size, int64_t y) const {
    if (at.high != nullptr) clear_behind(at.high, size, at.channels, y, 0);
    if (at.bytes != nullptr) clear_behind(at.bytes, size, at.channels, y, rounding.zero);
  }
  // Zeros in `count` elements.
  void clear(int64_t first, int64_t count) const {
    if (at.high != nullptr) std::memset(at.high + first, 0, count * sizeof(BFloat16));
    if (at.bytes != nullptr) std::memset(at.bytes + first, rounding.zero, count);
  }
};

// Sums of products as they lie in the memory.
template <class V, class E, class... Lanes>
static inline __attribute__((always_inline)) V load_products(const float* p, Lanes... lanes) {
  if constexpr (sizeof(E) == 1)
    return V::load_integers(p, lanes...);
  else
    return V::load(p, lanes...);
}
