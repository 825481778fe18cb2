// 3x3 convolutions of stride 1 by Winograd's minimal filtering (Lavin and Gray 2015): output tiles of M x M pixels cost
// (M + 2)^2 multiplications a channel pair in place of 9 M^2. Included inside the namespace of one instruction set.
//
// Sixteen tiles lie in the lanes of a register, so that any number of channels is as good as any other. A block of up
// to four such registers goes through three steps: transform all its input channels (they stay in the second cache),
// then for a few output channels at a time (M + 2)^2 small matrix products into a buffer that stays in the first cache,
// from where they are transformed back, biased, added to the residual and stored.

template <class V, int M>
struct WinogradTransform;

// Points 0, 1, -1, infinity.
template <class V>
struct WinogradTransform<V, 2> {
  static void input(V (&d)[4]) {
    const V d0 = d[0] - d[2], d1 = d[1] + d[2], d2 = d[2] - d[1], d3 = d[1] - d[3];
    d[0] = d0, d[1] = d1, d[2] = d2, d[3] = d3;
  }
  static void output(const V (&m)[4], V (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
};

// Points 0, +-sqrt(1/2), +-sqrt(2), infinity: rounding errors are a third of those with 0, +-1, +-2.
template <class V>
struct WinogradTransform<V, 4> {
  static void input(V (&d)[6]) {
    const V s = V::set1(1.41421356237f), h = V::set1(0.70710678118f);
    const V even_a = V::fma(V::set1(-2.f), d[2], d[4]), odd_a = V::fma(V::set1(-2.f), d[1], d[3]);
    const V even_b = V::fma(V::set1(-0.5f), d[2], d[4]), odd_b = V::fma(V::set1(-0.5f), d[1], d[3]);
    const V d0 = V::fma(V::set1(-2.5f), d[2], d[0] + d[4]), d5 = V::fma(V::set1(-2.5f), d[3], d[1] + d[5]);
    d[0] = d0;
    d[1] = V::fma(h, odd_a, even_a);
    d[2] = V::fnma(h, odd_a, even_a);
    d[3] = V::fma(s, odd_b, even_b);
    d[4] = V::fnma(s, odd_b, even_b);
    d[5] = d5;
  }
  static void output(const V (&m)[6], V (&y)[4]) {
    const V sum_a = m[1] + m[2], difference_a = m[1] - m[2], sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    y[0] = m[0] + sum_a + sum_b;
    y[1] = V::fma(V::set1(0.70710678118f), difference_a, V::set1(1.41421356237f) * difference_b);
    y[2] = V::fma(V::set1(0.5f), sum_a, V::set1(2.f) * sum_b);
    y[3] = V::fma(V::set1(0.35355339059f), difference_a, V::fma(V::set1(2.82842712475f), difference_b, m[5]));
  }
};

template <class Q, class T, int M>
class Winograd {
  using V = typename Q::V;
  using Transform = WinogradTransform<V, M>;
  static constexpr int N = M + 2, P = N * N, L = Q::L;
  static constexpr int kWidth = 4 * M;  // pixels of a quad's row

 public:
  static int64_t vectors(const Convolution& q) {  // registers of tiles
    return ceil_div(q.n * ceil_div(q.h, M) * ceil_div(q.w, kWidth), Q::kQuads);
  }
  // Registers of a block: what its transformed inputs may take of the second cache decides.
  static int64_t block(const Convolution& q) {
    const int64_t fits = kBlockBytes / (P * q.c_in * L * static_cast<int64_t>(sizeof(float)));
    return fits < 1 ? 1 : fits > 4 ? 4 : fits;
  }
  // Registers first .. first + count - 1 (at most 4), output channels of the blocks from .. to - 1.
  static void run(const Convolution& q, int64_t first, int count, int64_t from, int64_t to) {
    switch (count) {
      case 1: return Winograd(q).template tiles<1, 4>(first, from, to);
      case 2: return Winograd(q).template tiles<2, 2>(first, from, to);
      case 3: return Winograd(q).template tiles<3, 1>(first, from, to);
      default: return Winograd(q).template tiles<4, 1>(first, from, to);
    }
  }

 private:
  static constexpr int64_t kBlockBytes = 600 << 10;
  struct Quad {
    int64_t image;  // first image's offset, -1 where there is no such quad
    int64_t n, y, x;
  };
  const Convolution& q_;
  explicit Winograd(const Convolution& q) : q_(q) {}

  void place(int64_t vector, Quad (&quads)[4]) const {
    const int64_t across = ceil_div(q_.w, kWidth), down = ceil_div(q_.h, M);
    for (int i = 0; i < Q::kQuads; ++i) {
      const int64_t quad = vector * Q::kQuads + i, row = quad / across;
      quads[i] = {row < q_.n * down ? 0 : -1, row / down, row % down * M, quad % across * kWidth};
    }
  }

  template <int B, int G>
  void tiles(int64_t first, int64_t from, int64_t to) const {
    const int64_t step = B * L, pitch = q_.c_in * step + L;  // one line more: powers of two would share cache sets
    constexpr int64_t kProducts = P * G * kChannelBlock * B * L;
    float* products = static_cast<float*>(scratch(0, (kProducts + P * pitch) * sizeof(float)));
    float* inputs = products + kProducts;
    Quad quads[B][4];
    for (int b = 0; b < B; ++b) {
      place(first + b, quads[b]);
      transform_inputs(quads[b], inputs + b * L, step, pitch);
    }
    int64_t block = from;
    for (; block + G <= to; block += G) channels<B, G>(quads, block, inputs, pitch, products);
    if constexpr (G > 2)
      if (block + 3 == to) channels<B, 3>(quads, block, inputs, pitch, products), block += 3;
    if constexpr (G > 2)
      if (block + 2 == to) channels<B, 2>(quads, block, inputs, pitch, products), block += 2;
    if (block < to) channels<B, 1>(quads, block, inputs, pitch, products);
  }

  void transform_inputs(const Quad (&quads)[4], float* to, int64_t step, int64_t pitch) const {
    const T* rows[4][N];
    typename Q::Mask masks[4][N], more[4][N];
    const Planes& source = q_.source[0];
    for (int i = 0; i < 4; ++i)
      for (int r = 0; r < N; ++r) {
        const Quad& quad = quads[i];
        const int64_t y = quad.y - 1 + r;
        const bool inside = quad.image >= 0 && y >= 0 && y < q_.h;
        rows[i][r] =
            static_cast<const T*>(source.data) + (inside ? quad.n * source.image_stride + y * q_.w + quad.x - 1 : 0);
        // a quad reads kWidth + 2 pixels; with M = 4 the last two come in a register of their own
        masks[i][r] = inside ? Q::mask(1 - quad.x, q_.w + 1 - quad.x) : Q::mask(0, 0);
        more[i][r] = inside ? Q::mask(0, q_.w - 3 - quad.x) : Q::mask(0, 0);
      }
    for (int64_t c = 0; c < q_.c_in; ++c, to += step) {
      V d[N][N];
      for (int r = 0; r < N; ++r) {
        V pixels[4];
        for (int i = 0; i < 4; ++i) pixels[i] = Q::load(rows[i][r], masks[i][r]);
        Q::template split<M, 4>(pixels, d[r]);
        if constexpr (M == 4) {
          for (int i = 0; i < 4; ++i) pixels[i] = Q::load(rows[i][r] + 4, more[i][r]);
          Q::template split<M, 2>(pixels, d[r] + 4);
        }
        for (int i = 0; i < 4; ++i) rows[i][r] += q_.h * q_.w;
        Transform::input(d[r]);
      }
      for (int x = 0; x < N; ++x) {
        V column[N];
        for (int r = 0; r < N; ++r) column[r] = d[r][x];
        Transform::input(column);
        for (int r = 0; r < N; ++r) column[r].store(to + (r * N + x) * pitch);
      }
    }
  }

  // G blocks of output channels of B registers of tiles
  template <int B, int G>
  void channels(const Quad (&quads)[B][4], int64_t block, const float* inputs, int64_t pitch, float* products) const {
    constexpr int O = G * kChannelBlock;
    const int64_t weights = P * q_.c_in * kChannelBlock;  // of a block
    const float* weight = q_.weight + block * weights;
    for (int p = 0; p < P; ++p) {
      V sum[O][B];
      for (int o = 0; o < O; ++o)
        for (int b = 0; b < B; ++b) sum[o][b] = V::zero();
      const float* x = inputs + p * pitch;
      const float* w = weight + p * q_.c_in * kChannelBlock;
      for (int64_t c = 0; c < q_.c_in; ++c, x += B * L, w += kChannelBlock) {
        V in[B];
        for (int b = 0; b < B; ++b) in[b] = V::load(x + b * L);
        for (int g = 0; g < G; ++g)
          for (int o = 0; o < kChannelBlock; ++o) {
            const V factor = V::set1(w[g * weights + o]);
            for (int b = 0; b < B; ++b)
              sum[g * kChannelBlock + o][b] = V::fma(factor, in[b], sum[g * kChannelBlock + o][b]);
          }
      }
      for (int o = 0; o < O; ++o)
        for (int b = 0; b < B; ++b) sum[o][b].store(products + ((o * B + b) * P + p) * L);
    }
    for (int o = 0; o < O; ++o) {
      const int64_t channel = block * kChannelBlock + o;
      if (channel >= q_.c_out) break;
      for (int b = 0; b < B; ++b) finish(quads[b], channel, products + (o * B + b) * P * L);
    }
  }

  void finish(const Quad (&quads)[4], int64_t channel, const float* products) const {
    V rows[N][M];
    for (int r = 0; r < N; ++r) {
      V m[N];
      for (int x = 0; x < N; ++x) m[x] = V::load(products + (r * N + x) * L);
      Transform::output(m, rows[r]);
    }
    const V bias = V::set1(q_.bias[channel]);
    const bool relu = channel >= q_.relu_from;
    V y[M][M];
    for (int x = 0; x < M; ++x) {
      V column[N], out[M];
      for (int r = 0; r < N; ++r) column[r] = rows[r][x];
      Transform::output(column, out);
      for (int r = 0; r < M; ++r) y[r][x] = out[r];
    }
    for (int r = 0; r < M; ++r) {
      V pixels[4];
      Q::merge(y[r], pixels);
      for (int i = 0; i < 4; ++i) {
        const Quad& quad = quads[i];
        if (quad.image < 0 || quad.y + r >= q_.h) continue;
        const int64_t at = (channel * q_.h + quad.y + r) * q_.w + quad.x;
        const auto mask = Q::mask(0, q_.w - quad.x < kWidth ? q_.w - quad.x : kWidth);
        V out = pixels[i] + bias;
        if (q_.residual.data)
          out = out + Q::load(static_cast<const T*>(q_.residual.data) + quad.n * q_.residual.image_stride + at, mask);
        if (relu) out = out.relu();
        T* to = static_cast<T*>(const_cast<void*>(q_.output.data)) + quad.n * q_.output.image_stride + at;
        Q::store(to, mask, out);
      }
    }
  }
};
