// Blocks of products by instructions that multiply two rows by two columns of eight bytes each. Included inside the
// namespace of one instruction set.
//
// A register holds the sums of two pixels by two channels. The eight bytes of a channel are two groups of four that lie
// 64 bytes apart in the packed weights: they are brought together when they are loaded, once for four pixels. Sums of
// bytes are exact; those of bfloat16 are rounded as the CPU likes.

struct MatrixBlocks {
  static void begin() {}
  static void end() {}
  static void written() {}

  template <class E, int MT, int NT, class Between>
  static void multiply(const TileSource<MT>* sources, int count, const TileTarget& t, Between) {
    for (int m = 0; m < MT; ++m)
      for (int n = NT; n-- > 0;)  // the last first: what they have too many lies where the next pixel's first ones come
        for (int p = 0; p < 16; p += kPixels)
          pixels<E, MT, NT>(sources, count, m, n, p, t.to + m * t.tile + n * t.next + p * t.row, t);
  }

 private:
  using Sums = int32x4_t;  // or floats
  static constexpr int kPixels = 4, kPairs = kPixels / 2, kColumns = 8;
  static Sums load(const char* p) { return vreinterpretq_s32_s8(vld1q_s8(reinterpret_cast<const int8_t*>(p))); }
  static void store(char* p, Sums x) { vst1q_s8(reinterpret_cast<int8_t*>(p), vreinterpretq_s8_s32(x)); }
  static Sums load_halves(const char* low, const char* high) {
    return vreinterpretq_s32_s8(
        vcombine_s8(vld1_s8(reinterpret_cast<const int8_t*>(low)), vld1_s8(reinterpret_cast<const int8_t*>(high))));
  }
  static Sums lower(Sums a, Sums b) { return vcombine_s32(vget_low_s32(a), vget_low_s32(b)); }
  static Sums upper(Sums a, Sums b) { return vcombine_s32(vget_high_s32(a), vget_high_s32(b)); }
  // As text: compilers before Clang 16 have the intrinsics only where a whole file is compiled for them.
  template <class E>
  static Sums product(Sums sums, Sums a, Sums w) {
    if constexpr (sizeof(E) == 1)
      __asm__("usmmla %0.4s, %1.16b, %2.16b" : "+w"(sums) : "w"(a), "w"(w));
    else
      __asm__("bfmmla %0.4s, %1.8h, %2.8h" : "+w"(sums) : "w"(a), "w"(w));
    return sums;
  }

  template <class E, int MT, int NT>
  static void pixels(const TileSource<MT>* sources, int count, int m, int n, int first, char* to, const TileTarget& t) {
    Sums sums[kPairs][kColumns];
    unroll<kPairs>([&](auto p) {
      unroll<kColumns / 2>([&](auto c) {
        const char* at = to + 2 * p() * t.row + c() * 16;
        const Sums a = t.add ? load(at) : vdupq_n_s32(0), b = t.add ? load(at + t.row) : vdupq_n_s32(0);
        sums[p()][2 * c()] = lower(a, b), sums[p()][2 * c() + 1] = upper(a, b);
      });
    });
    for (int s = 0; s < count; ++s) {
      const TileSource<MT>& source = sources[s];
      const char* w = source.weight + n * kTileBytes;
      for (int64_t ky = 0; ky < source.kernel; ++ky) {
        const char* a = source.at[m] + first * source.step + ky * source.row;
        for (int64_t left = source.bytes; left > 0; left -= kTileRow, a += kTileRow, w += NT * kTileBytes) {
          const int64_t end = left < kTileRow ? left : kTileRow;  // what follows would be multiplied by zeros
          for (int64_t k = 0; k < end; k += 8) {
            Sums x[kPairs];
            unroll<kPairs>([&](auto p) {
              const char* from = a + 2 * p() * source.step + k;
              x[p()] = load_halves(from, from + source.step);
            });
            unroll<kColumns / 2>([&](auto c) {
              const Sums y = load(w + k * 16 + c() * 16), z = load(w + k * 16 + 64 + c() * 16);
              const Sums left_pair = vzip1q_s32(y, z), right_pair = vzip2q_s32(y, z);
              unroll<kPairs>([&](auto p) {
                sums[p()][2 * c()] = product<E>(sums[p()][2 * c()], x[p()], left_pair);
                sums[p()][2 * c() + 1] = product<E>(sums[p()][2 * c() + 1], x[p()], right_pair);
              });
            });
          }
        }
      }
    }
    unroll<kPairs>([&](auto p) {
      unroll<2>([&](auto row) {
        unroll<kColumns / 2>([&](auto c) {
          const Sums a = sums[p()][2 * c()], b = sums[p()][2 * c() + 1];
          store(to + (2 * p() + row()) * t.row + c() * 16, row() == 0 ? lower(a, b) : upper(a, b));
        });
      });
    });
  }
};
