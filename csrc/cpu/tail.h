// The last few output channels where they would fill 2 or 4 lanes of a whole vector: 18 channels are one vector and two
// lanes. They are computed with the other dimension along the vectors, input channels in the products and pixels in the
// sum, and kept in planes [pixel][T] that full vectors run over. Included inside the namespace of one instruction set.

// Bilinear upsampling by exactly F = 2, 4, 8 (align_corners False): output pixel 8 g - 4 + r lies between source pixels
// 8 g / F + source and the next, the same pattern in every run of eight output pixels.
constexpr int kRun = 8;
template <int F>
struct RunTap {
  static constexpr double position(int r) { return (r - 4 + 0.5) / F - 0.5; }
  static constexpr int source(int r) { return static_cast<int>(position(r) + kRun) - kRun; }  // floor
  static constexpr double w1(int r) { return position(r) - source(r); }  // exact: a dyadic number
};

// How many channels go into the tail: 2, 4, or 0 where a vector is better.
template <class V>
static int tail_channels(int64_t channels) {
  const int64_t rest = channels % V::L;
  return channels > V::L && (rest == 2 || rest == 4) ? static_cast<int>(rest) : 0;
}

// The same for a projection behind the sum, whose tail has kTailOutputs lanes, in use or not: 19 classes, or 1 or 2.
constexpr int kTailOutputs = 4;
template <class V>
static int projection_tail(int64_t channels) {
  const int64_t rest = channels % V::L;
  return rest <= kTailOutputs ? static_cast<int>(rest) : 0;
}

// T channels of V::L / T pixels that lie `step` elements apart.
template <class V, int T, class E>
static inline V load_pixels(const E* p, int64_t step) {
  if constexpr (std::is_same<E, float>::value) {
    return V::template load_pixels<T>(p, step);
  } else {
    typename V::A lanes[V::L];
    for (int l = 0; l < V::L; ++l) lanes[l] = Convert<E>::wide(p[l / T * step + l % T]);
    return V::load(lanes);
  }
}

template <class V, int T, class E>
static inline void store_pixels(V x, E* p, int64_t step) {
  if constexpr (std::is_same<E, float>::value) {
    x.template store_pixels<T>(p, step);
  } else {
    typename V::A lanes[V::L];
    x.store(lanes);
    for (int l = 0; l < V::L; ++l) p[l / T * step + l % T] = Convert<E>::narrow(lanes[l]);
  }
}

// z[pixel][T] = sum over input channels; `packed` is [T][in rounded up to vectors], zeros beyond `in`.
template <class V, int T>
static void tail_products(const typename V::A* x, int64_t step, int64_t pixels, int64_t in, const typename V::A* packed,
                          typename V::A* z) {
  constexpr int kPixels = V::L / T;
  const int64_t padded = round_up(in, V::L), full = in / V::L * V::L;
  const int rest = static_cast<int>(in - full);
  for (int64_t m = 0; m < pixels; m += kPixels, z += V::L) {
    const typename V::A* from[kPixels];  // beyond the row, its last pixel again
    for (int i = 0; i < kPixels; ++i) from[i] = x + (m + i < pixels ? m + i : pixels - 1) * step;
    V sums[V::L];
    for (int i = 0; i < V::L; ++i) sums[i] = V::zero();
    for (int64_t k = 0; k < full; k += V::L)
      for (int i = 0; i < kPixels; ++i) {
        const V pixel = V::load(from[i] + k);
        for (int t = 0; t < T; ++t) sums[i * T + t] = V::fma(pixel, V::load(packed + t * padded + k), sums[i * T + t]);
      }
    if (rest > 0)
      for (int i = 0; i < kPixels; ++i) {
        const V pixel = V::load(from[i] + full, rest);
        for (int t = 0; t < T; ++t)
          sums[i * T + t] = V::fma(pixel, V::load(packed + t * padded + full), sums[i * T + t]);
      }
    const int64_t left = (pixels - m) * T;
    const V totals = V::sum_each(sums);
    left < V::L ? totals.store(z, static_cast<int>(left)) : totals.store(z);
  }
}

template <class T, class A>
static void pack_tail(const Matrix& w, int64_t first, int rows, int64_t padded, A* to) {
  for (int t = 0; t < rows; ++t, to += padded) {
    const T* from = static_cast<const T*>(w.data) + (first + t) * w.row_stride;
    for (int64_t k = 0; k < padded; ++k)
      to[k] = k < w.cols && first + t < w.rows ? Convert<T>::wide(from[k * w.col_stride]) : A(0);
  }
}

// Where the lanes of a run come from in a plane [pixel][T] (see RunTap), and their weights: V::L / T pixels a vector.
template <class V, int F, int T>
struct TailRun {
  static constexpr int kVectors = kRun * T / V::L > 0 ? kRun* T / V::L : 1;
  int32_t first[kVectors][V::L], second[kVectors][V::L];  // from the vector's own first source on
  typename V::A w0[kVectors][V::L], w1[kVectors][V::L];
  constexpr TailRun() : first(), second(), w0(), w1() {
    for (int v = 0; v < kVectors; ++v)
      for (int l = 0; l < V::L; ++l) {
        const int r = v * (V::L / T) + l / T;
        first[v][l] = (RunTap<F>::source(r) - RunTap<F>::source(v * (V::L / T))) * T + l % T;
        second[v][l] = first[v][l] + T;
        w1[v][l] = static_cast<typename V::A>(RunTap<F>::w1(r));
        w0[v][l] = 1 - w1[v][l];
      }
  }
  static constexpr int64_t start(int v) { return RunTap<F>::source(v * (V::L / T)) * T; }
};

template <class V, int F, int T>
static inline __attribute__((always_inline)) V add_tail_run(int v, V acc, const typename V::A* source) {
  static constexpr TailRun<V, F, T> run{};
  const typename V::A* from = source + run.start(v);
  acc = V::fma(V::load(run.w0[v]), V::pick(from, run.first[v]), acc);
  return V::fma(V::load(run.w1[v]), V::pick(from, run.second[v]), acc);
}

// The sum of combine_pixels for the tail of a whole row. row.up are planes [pixel][T], 2 L elements longer than they
// are; row.identity and row.out point to the first tail channel.
template <class V, int UPS, int T, class E>
static void combine_tail(const CombineRow<E, E, typename V::A>& row) {
  using A = typename V::A;
  constexpr int kPixels = V::L / T, kVectors = kRun / kPixels;
  const auto edge = [&](int64_t x) {
    for (int t = 0; t < T; ++t) {
      A acc = row.bias[t];
      for (int i = 0; i < row.identities; ++i) acc += Convert<E>::wide(row.identity[i].p[x * row.identity[i].step + t]);
      for (int u = 0; u < UPS; ++u) {
        const Tap<A>& tap = row.taps[x * UPS + u];
        acc = __builtin_fma(tap.w0, row.up[u][tap.i0 * T + t], acc);
        acc = __builtin_fma(tap.w1, row.up[u][tap.i1 * T + t], acc);
      }
      row.out[x * row.step + t] = Convert<E>::narrow(row.relu && acc < A(0) ? A(0) : acc);
    }
  };
  for (int64_t x = 0; x < kRun / 2; ++x) edge(x);
  for (int64_t x = row.pixels - kRun / 2; x < row.pixels; ++x) edge(x);
  V bias = V::zero();
  {
    A lanes[V::L];
    for (int l = 0; l < V::L; ++l) lanes[l] = row.bias[l % T];
    bias = V::load(lanes);
  }
  for (int64_t g = 1; g < row.pixels / kRun; ++g)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t x = g * kRun - kRun / 2 + v * kPixels;
      V acc = bias;
      for (int i = 0; i < row.identities; ++i)
        acc = acc + load_pixels<V, T>(row.identity[i].p + x * row.identity[i].step, row.identity[i].step);
      acc = add_tail_run<V, 2, T>(v, acc, row.up[0] + 4 * g * T);
      if constexpr (UPS > 1) acc = add_tail_run<V, 4, T>(v, acc, row.up[1] + 2 * g * T);
      if constexpr (UPS > 2) acc = add_tail_run<V, 8, T>(v, acc, row.up[2] + g * T);
      if (row.relu) acc = acc.relu();
      store_pixels<V, T>(acc, row.out + x * row.step, row.step);
    }
}
