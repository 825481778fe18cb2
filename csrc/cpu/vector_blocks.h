// Blocks of products in vector registers, for CPUs without tile registers. Included inside the namespace of one
// instruction set.
//
// Dots has vectors of L sums: dot(sums, a, w) adds the products of four bytes, unsigned in a, the same in all lanes,
// and signed in w; with kOffset it adds 128 of each byte of a too much, which is taken away at the end. The sums are
// the same on every instruction set; those of bfloat16 are added up in the order of AMX.

static inline int32_t four_bytes(const char* p) {
  int32_t bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  return bytes;
}

template <class Dots>
struct VectorBlocks {
  static void begin() {}
  static void end() {}
  static void written() {}

  template <class E, int MT, int NT, class Between>
  static void multiply(const TileSource<MT>* sources, int count, const TileTarget& t, Between) {
    for (int m = 0; m < MT; ++m)
      for (int p = 0; p < 16; p += kPixels<E, NT>)
        pixels<MT, NT, kPixels<E, NT>>(static_cast<const E*>(nullptr), sources, count, m, p,
                                       t.to + m * t.tile + p * t.row, t);
  }

 private:
  using Sums = typename Dots::Sums;
  using V = typename Dots::V;
  static constexpr int kVectors = 16 / Dots::L;  // of a tile's channels
  // pixels whose sums are in the registers together; of bfloat16 there are two for each, of even and of odd factors
  template <class E, int NT>
  static constexpr int kPixels = Dots::kSums / (NT * kVectors * static_cast<int>(sizeof(E))) >= 8   ? 8
                                 : Dots::kSums / (NT * kVectors * static_cast<int>(sizeof(E))) >= 4 ? 4
                                 : Dots::kSums / (NT * kVectors * static_cast<int>(sizeof(E))) >= 2 ? 2
                                                                                                    : 1;

  template <int MT, int NT, int P>
  static void pixels(const uint8_t*, const TileSource<MT>* sources, int count, int m, int first, char* to,
                     const TileTarget& t) {
    constexpr int N = NT * kVectors;
    const auto at = [&](int p, int n) { return to + p * t.row + n / kVectors * t.next + n % kVectors * Dots::L * 4; };
    Sums sums[P][N];
    unroll<P>(
        [&](auto p) { unroll<N>([&](auto n) { sums[p()][n()] = t.add ? Dots::load(at(p(), n())) : Dots::zero(); }); });
    [[maybe_unused]] Sums bytes[P];  // of each pixel
    if constexpr (Dots::kOffset) unroll<P>([&](auto p) { bytes[p()] = Dots::zero(); });
    for (int s = 0; s < count; ++s) {
      const TileSource<MT>& source = sources[s];
      const char* w = source.weight;
      for (int64_t ky = 0; ky < source.kernel; ++ky) {
        const char* a = source.at[m] + first * source.step + ky * source.row;
        for (int64_t left = source.bytes; left > 0; left -= kTileRow, a += kTileRow, w += NT * kTileBytes) {
          const int64_t end = left < kTileRow ? left : kTileRow;
          for (int64_t k = 0; k < end; k += 4) {
            Sums weights[N];
            unroll<N>([&](auto n) {
              weights[n()] = Dots::load(w + n() / kVectors * kTileBytes + k * 16 + n() % kVectors * Dots::L * 4);
            });
            unroll<P>([&](auto p) {
              const Sums x = Dots::broadcast(a + p() * source.step + k);
              if constexpr (Dots::kOffset) bytes[p()] = Dots::add_bytes(bytes[p()], x);
              unroll<N>([&](auto n) { sums[p()][n()] = Dots::dot(sums[p()][n()], x, weights[n()]); });
            });
          }
        }
      }
    }
    unroll<P>([&](auto p) {
      unroll<N>([&](auto n) {
        if constexpr (Dots::kOffset)
          Dots::store(at(p(), n()), Dots::without_offset(sums[p()][n()], bytes[p()]));
        else
          Dots::store(at(p(), n()), sums[p()][n()]);
      });
    });
  }

  template <int MT, int NT, int P>
  static void pixels(const BFloat16*, const TileSource<MT>* sources, int count, int m, int first, char* to,
                     const TileTarget& t) {
    constexpr int N = NT * kVectors;
    alignas(64) float sums[P][N][Dots::L];
    const auto at = [&](int p, int n) {
      return reinterpret_cast<float*>(to + p * t.row + n / kVectors * t.next + n % kVectors * Dots::L * 4);
    };
    for (int p = 0; p < P; ++p)
      for (int n = 0; n < N; ++n) (t.add ? V::load(at(p, n)) : V::zero()).store(sums[p][n]);
    for (int s = 0; s < count; ++s) {
      const TileSource<MT>& source = sources[s];
      const char* w = source.weight;
      for (int64_t ky = 0; ky < source.kernel; ++ky) {
        const char* a = source.at[m] + first * source.step + ky * source.row;
        for (int64_t left = source.bytes; left > 0; left -= kTileRow, a += kTileRow, w += NT * kTileBytes) {
          V even[P][N], odd[P][N];
          unroll<P>([&](auto p) { unroll<N>([&](auto n) { even[p()][n()] = odd[p()][n()] = V::zero(); }); });
          const int64_t end = left < kTileRow ? left : kTileRow;
          for (int64_t k = 0; k < end; k += 4) {  // what follows would be multiplied by zeros
            V w0[N], w1[N];
            unroll<N>([&](auto n) {
              const char* from = w + n() / kVectors * kTileBytes + k * 16 + n() % kVectors * Dots::L * 4;
              Dots::halves(Dots::load(from), w0[n()], w1[n()]);
            });
            unroll<P>([&](auto p) {
              V x0, x1;
              Dots::halves(Dots::broadcast(a + p() * source.step + k), x0, x1);
              unroll<N>([&](auto n) {
                even[p()][n()] = V::fma(x0, w0[n()], even[p()][n()]);
                odd[p()][n()] = V::fma(x1, w1[n()], odd[p()][n()]);
              });
            });
          }
          unroll<P>([&](auto p) {
            unroll<N>(
                [&](auto n) { (V::load(sums[p()][n()]) + (even[p()][n()] + odd[p()][n()])).store(sums[p()][n()]); });
          });
        }
      }
    }
    for (int p = 0; p < P; ++p)
      for (int n = 0; n < N; ++n) V::load(sums[p][n]).store(at(p, n));
  }
};
