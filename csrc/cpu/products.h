// The 1x1 convolutions as small matrix products on register tiles. Included inside the namespace of one instruction
// set.
//
// torch's own matmul costs more to call than these products take, hence the micro-kernels. Every result is the sum over
// input channels in ascending order, wherever its tile lies: the same bits for any number of threads.

template <class V, class TB>
struct FmaOp {  // one input channel a step: accumulators += broadcast(a) * b
  using Acc = V;
  static V broadcast(const char* a) {
    typename V::A x;
    std::memcpy(&x, a, sizeof(x));
    return V::set1(x);
  }
  static V load(const char* b) { return V::load(reinterpret_cast<const TB*>(b)); }
  static V load(const char* b, int n) { return V::load(reinterpret_cast<const TB*>(b), n); }
  static constexpr int64_t kVectorBytes = V::L * sizeof(TB);
  static V mul_add(V a, V b, V acc) { return V::fma(a, b, acc); }
};

// c[m][n] (+)= sum_k a[m][k] * b[k][n] for MR rows and NV vectors; strides of a and b in bytes, of c in elements.
template <class Op, int MR, int NV, bool TAIL>
static inline __attribute__((always_inline)) void tile(int64_t steps, const char* a, int64_t am, int64_t ak,
                                                       const char* b, int64_t bk, int tail, typename Op::Acc::A* c,
                                                       int64_t cm, bool accumulate) {
  using V = typename Op::Acc;
  V acc[MR][NV];
  for (int m = 0; m < MR; ++m)
    for (int v = 0; v < NV; ++v) acc[m][v] = accumulate ? V::load(c + m * cm + v * V::L) : V::zero();
  for (int64_t k = 0; k < steps; ++k) {
    decltype(Op::load(b)) row[NV];
    for (int v = 0; v < NV; ++v)
      row[v] = TAIL && v == NV - 1 ? Op::load(b + v * Op::kVectorBytes, tail) : Op::load(b + v * Op::kVectorBytes);
    for (int m = 0; m < MR; ++m) {
      const auto x = Op::broadcast(a + m * am);
      for (int v = 0; v < NV; ++v) acc[m][v] = Op::mul_add(x, row[v], acc[m][v]);
    }
    a += ak;
    b += bk;
  }
  for (int m = 0; m < MR; ++m)
    for (int v = 0; v < NV; ++v) acc[m][v].store(c + m * cm + v * V::L);
}

// All rows of c, NV vectors wide.
template <class Op, int NV, bool TAIL>
static void strip(int64_t rows, int64_t steps, const char* a, int64_t am, int64_t ak, const char* b, int64_t bk,
                  int tail, typename Op::Acc::A* c, int64_t cm, bool accumulate) {
  constexpr int MR = NV == 1 ? 2 * Op::Acc::MR : Op::Acc::MR;  // one vector leaves registers for more rows
  int64_t m = 0;
  for (; m + MR <= rows; m += MR)
    tile<Op, MR, NV, TAIL>(steps, a + m * am, am, ak, b, bk, tail, c + m * cm, cm, accumulate);
  if constexpr (NV == 1)
    for (; m + MR / 2 <= rows; m += MR / 2)
      tile<Op, MR / 2, NV, TAIL>(steps, a + m * am, am, ak, b, bk, tail, c + m * cm, cm, accumulate);
  for (; m + 2 <= rows; m += 2)
    tile<Op, 2, NV, TAIL>(steps, a + m * am, am, ak, b, bk, tail, c + m * cm, cm, accumulate);
  if (m < rows) tile<Op, 1, NV, TAIL>(steps, a + m * am, am, ak, b, bk, tail, c + m * cm, cm, accumulate);
}

template <class Op>
static void any_strip(int vectors, int64_t rows, int64_t steps, const char* a, int64_t am, int64_t ak, const char* b,
                      int64_t bk, int tail, typename Op::Acc::A* c, int64_t cm, bool accumulate) {
  const bool full = tail == Op::Acc::L;
#define HRNET_FAST_STRIP(NV)                                                           \
  (full ? strip<Op, NV, false>(rows, steps, a, am, ak, b, bk, tail, c, cm, accumulate) \
        : strip<Op, NV, true>(rows, steps, a, am, ak, b, bk, tail, c, cm, accumulate))
  switch (vectors) {
    case 1: HRNET_FAST_STRIP(1); break;
    case 2: HRNET_FAST_STRIP(2); break;
    default: HRNET_FAST_STRIP(3); break;
  }
#undef HRNET_FAST_STRIP
  static_assert(Op::Acc::PV == 3, "one case a width");
}

// Packs 16 output channels: load(i) gives 16 steps of the i-th, step k goes to `to + k * stride` for the first `steps`.
template <class V, class Load>
static void pack_transposed(Load load, int64_t steps, typename V::A* to, int64_t stride) {
  V rows[16];
  for (int i = 0; i < 16; ++i) rows[i] = load(i);
  V::transpose(rows);
  for (int64_t k = 0; k < 16 && k < steps; ++k) rows[k].store(to + k * stride);
}

// Channels-last products: z[pixel][output channel of panel p] from x[pixel][input channel].
template <class V, class T>
struct FmaProducts {
  using A = typename V::A;
  using Operand = A;  // rows of another dtype are widened first: cheap beside the product
  static constexpr int64_t kStepChannels = 1;
  // A few channels beyond the last vector are worth products of their own (tail.h), not with vectors of eight.
  static constexpr bool kTails = V::kTransposes;

  static int64_t packed_size(int64_t in, const Panels<V>& panels) { return in * panels.padded(); }  // in Operands
  // [panel][input channel][output channel of the panel], padded with zeros
  static void pack(const Matrix& w, const Panels<V>& panels, int64_t p, Operand* to) {
    const T* from = static_cast<const T*>(w.data);
    const int64_t start = panels.start(p), width = panels.width(p) * V::L;
    to += start * w.cols;
    if constexpr (V::kTransposes) {
      if (w.col_stride == 1) {
        for (int64_t k = 0; k < w.cols; k += V::L)
          for (int64_t n = 0; n < width; n += V::L) {
            const int64_t left = w.cols - k;
            const auto load = [&](int i) {
              const T* row = from + (start + n + i) * w.row_stride + k;
              if (start + n + i >= w.rows) return V::zero();
              return left < V::L ? V::load(row, static_cast<int>(left)) : V::load(row);
            };
            pack_transposed<V>(load, left, to + k * width + n, width);
          }
        return;
      }
    }
    for (int64_t n = 0; n < width; ++n) {
      if (start + n < w.rows) {
        const T* row = from + (start + n) * w.row_stride;
        for (int64_t k = 0; k < w.cols; ++k) to[k * width + n] = Convert<T>::wide(row[k * w.col_stride]);
      } else {
        for (int64_t k = 0; k < w.cols; ++k) to[k * width + n] = A(0);
      }
    }
  }
  static void pad(const Operand*, int64_t, Operand*) {}  // never needed: any number of channels is a multiple of one
  static void panel(const Operand* x, int64_t step, int64_t pixels, int64_t in, const Operand* packed,
                    const Panels<V>& panels, int64_t p, A* z, bool accumulate) {
    const int64_t width = panels.width(p) * V::L;
    any_strip<FmaOp<V, A>>(panels.width(p), pixels, in, reinterpret_cast<const char*>(x), step * sizeof(A), sizeof(A),
                           reinterpret_cast<const char*>(packed + panels.start(p) * in), width * sizeof(A), V::L, z,
                           width, accumulate);
  }
};

#ifdef HRNET_FAST_HAS_BF16_INSTRUCTIONS
struct DotOp {  // two input channels a step, multiplied as bfloat16 and summed in float32
  using Acc = VecAvx512;
  static __m512i broadcast(const char* a) {
    int32_t pair;
    std::memcpy(&pair, a, sizeof(pair));
    return _mm512_set1_epi32(pair);
  }
  static __m512i load(const char* b) { return _mm512_loadu_si512(b); }
  static __m512i load(const char* b, int) { return _mm512_loadu_si512(b); }  // packed panels have no tail
  static constexpr int64_t kVectorBytes = 64;
  static VecAvx512 mul_add(__m512i a, __m512i b, VecAvx512 acc) {
    return {_mm512_dpbf16_ps(acc.v, bit_cast<__m512bh>(a), bit_cast<__m512bh>(b))};
  }
};

// 32 weights of output channel n from input channel k on, as 16 pairs; zeros beyond the matrix.
template <class V>
static V load_pairs(const Matrix& w, int64_t n, int64_t k) {
  if (n >= w.rows) return V::zero();
  const int64_t left = w.cols - k;
  const __mmask32 mask = left >= 32 ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
  const BFloat16* row = static_cast<const BFloat16*>(w.data) + n * w.row_stride + k;
  return {_mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, row))};
}

template <class V, class T>
struct DotProducts {
  using Operand = BFloat16;
  static constexpr bool kTails = false;
  static constexpr int64_t kStepChannels = 2;  // rows with an odd number of channels are copied and padded

  static int64_t packed_size(int64_t in, const Panels<V>& panels) { return round_up(in, 2) * panels.padded(); }
  // [panel][pair of input channels][output channel of the panel][2]
  static void pack(const Matrix& w, const Panels<V>& panels, int64_t p, Operand* to) {
    const T* from = static_cast<const T*>(w.data);
    const int64_t start = panels.start(p), width = panels.width(p) * V::L, in = round_up(w.cols, 2);
    to += start * in;
    if (w.col_stride == 1) {
      for (int64_t k = 0; k < in; k += 32)
        for (int64_t n = 0; n < width; n += V::L)
          pack_transposed<V>([&](int i) { return load_pairs<V>(w, start + n + i, k); }, (in - k) / 2,
                             reinterpret_cast<float*>(to + k * width + 2 * n), width);
      return;
    }
    for (int64_t n = 0; n < width; ++n)
      for (int64_t k = 0; k < in; ++k)
        to[(k / 2) * 2 * width + 2 * n + (k & 1)] =
            start + n < w.rows && k < w.cols ? from[(start + n) * w.row_stride + k * w.col_stride] : BFloat16{0};
  }
  // One pixel's channels, with a zero behind an odd number of them.
  static void pad(const Operand* from, int64_t channels, Operand* to) {
    std::memcpy(to, from, channels * sizeof(Operand));
    to[channels] = Operand{0};
  }
  static void panel(const Operand* x, int64_t step, int64_t pixels, int64_t in, const Operand* packed,
                    const Panels<V>& panels, int64_t p, float* z, bool accumulate) {
    const int64_t width = panels.width(p) * V::L, pairs = ceil_div(in, 2);
    any_strip<DotOp>(panels.width(p), pixels, pairs, reinterpret_cast<const char*>(x), step * 2, 4,
                     reinterpret_cast<const char*>(packed + panels.start(p) * pairs * 2), width * 4, V::L, z, width,
                     accumulate);
  }
};
#endif

// Planar products: z[output channel][pixel] from x[input channel][pixel]; pixels along the vectors.
template <class V, class T>
static void planar_products(const typename V::A* weight, int64_t out, int64_t in, const T* x, int64_t step,
                            int64_t pixels, typename V::A* z, int64_t ld, bool accumulate) {
  using A = typename V::A;
  const int64_t vectors = ceil_div(pixels, V::L);
  for (int64_t v = 0; v < vectors; v += V::PV) {
    const int64_t left = vectors - v;
    const int width = static_cast<int>(left < V::PV ? left : V::PV);
    const int64_t rest = pixels - (v + width - 1) * V::L;
    any_strip<FmaOp<V, T>>(width, out, in, reinterpret_cast<const char*>(weight), in * sizeof(A), sizeof(A),
                           reinterpret_cast<const char*>(x + v * V::L), step * sizeof(T),
                           static_cast<int>(rest < V::L ? rest : V::L), z + v * V::L, ld, accumulate);
  }
}
