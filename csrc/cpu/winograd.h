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

//
// With PAIRS two transformed input channels, rounded to bfloat16, lie in a lane, and an instruction multiplies both.

template <class Q, int M, bool PAIRS = false>
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
    const int64_t fits = kBlockBytes / (P * depth(q) * L * static_cast<int64_t>(sizeof(float)));
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
  static constexpr int64_t kPlanesAhead = 2;
  struct Quad {  // offsets in elements, from the beginning of the tensors
    int64_t y;  // first row
    int64_t input;  // of the first pixel that the quad reads: one row up, one column to the left
    int64_t output, residual;
    int rows;  // that it has to store; 0: there is no such quad
    typename Q::Mask reads, more,
        stores;  // columns inside of the image; with M = 4 two of those read come on their own
  };
  struct Quads {
    Quad quad[4];
    bool inner;  // all rows that they read are inside of the image
  };
  const Convolution& q_;
  const int64_t plane_, depth_;
  static int64_t depth(const Convolution& q) { return PAIRS ? ceil_div(q.c_in, 2) : q.c_in; }
  explicit Winograd(const Convolution& q) : q_(q), plane_(q.h * q.w), depth_(depth(q)) {}

  void place(int64_t vector, Quads& to) const {
    const int64_t across = ceil_div(q_.w, kWidth), down = ceil_div(q_.h, M);
    to.inner = true;
    for (int i = 0; i < Q::kQuads; ++i) {
      const int64_t quad = vector * Q::kQuads + i, row = quad / across, n = row / down;
      const int64_t y = row % down * M, x = quad % across * kWidth, at = y * q_.w + x;
      Quad& t = to.quad[i];
      t.y = y;
      t.rows = n >= q_.n ? 0 : static_cast<int>(q_.h - y < M ? q_.h - y : M);
      t.input = n * q_.source[0].image_stride + at - q_.w - 1;
      t.output = n * q_.output.image_stride + at;
      t.residual = n * q_.residual.image_stride + at;
      t.reads = Q::mask(1 - x, q_.w + 1 - x);
      t.more = Q::mask(0, q_.w - 3 - x);
      t.stores = Q::mask(0, q_.w - x < kWidth ? q_.w - x : kWidth);
      to.inner = to.inner && n < q_.n && y > 0 && y + M < q_.h;
    }
  }

  template <int B, int G>
  void tiles(int64_t first, int64_t from, int64_t to) const {
    const int64_t step = B * L, pitch = depth_ * step + L;  // one line more: powers of two would share cache sets
    constexpr int64_t kProducts = P * G * kChannelBlock * B * L;
    float* products = static_cast<float*>(scratch(0, (kProducts + P * pitch) * sizeof(float)));
    float* inputs = products + kProducts;
    Quads quads[B];
    for (int b = 0; b < B; ++b) {
      place(first + b, quads[b]);
      with_type(q_.source[0].dtype, [&](auto* type) {
        const auto* from = static_cast<decltype(type)>(const_cast<void*>(q_.source[0].data));
        if (quads[b].inner)
          transform_inputs<true>(from, quads[b], inputs + b * L, step, pitch);
        else
          transform_inputs<false>(from, quads[b], inputs + b * L, step, pitch);
      });
    }
    int64_t block = from;
    for (; block + G <= to; block += G) channels<B, G>(quads, block, inputs, pitch, products);
    if constexpr (G > 2)
      if (block + 3 == to) channels<B, 3>(quads, block, inputs, pitch, products), block += 3;
    if constexpr (G > 2)
      if (block + 2 == to) channels<B, 2>(quads, block, inputs, pitch, products), block += 2;
    if (block < to) channels<B, 1>(quads, block, inputs, pitch, products);
  }

  template <bool INNER, class T>
  void transform_inputs(const T* from, const Quads& quads, float* to, int64_t step, int64_t pitch) const {
    const T* at[4];
    typename Q::Mask reads[4], more[4];
    for (int i = 0; i < 4; ++i) {
      at[i] = from + quads.quad[i].input;
      reads[i] = quads.quad[i].reads, more[i] = quads.quad[i].more;
    }
    for (int64_t c = 0; c < q_.c_in; c += PAIRS ? 2 : 1, to += step) {
      V elements[N][N];
      transform_plane<INNER>(quads, at, reads, more, c * plane_, elements);
      if constexpr (PAIRS) {
        V second[N][N];
        if (c + 1 < q_.c_in)
          transform_plane<INNER>(quads, at, reads, more, (c + 1) * plane_, second);
        else
          for (V(&row)[N] : second)
            for (V& element : row) element = V::zero();
        for (int r = 0; r < N; ++r)
          for (int x = 0; x < N; ++x) elements[r][x] = Q::join_pairs(elements[r][x], second[r][x]);
      }
      for (int r = 0; r < N; ++r)
        for (int x = 0; x < N; ++x) elements[r][x].store(to + (r * N + x) * pitch);
    }
  }

  // The transformed tiles of one channel.
  template <bool INNER, class T>
  void transform_plane(const Quads& quads, const T* const (&at)[4], const typename Q::Mask (&reads)[4],
                       const typename Q::Mask (&more)[4], int64_t offset, V (&to)[N][N]) const {
    V d[N][N];
    for (int r = 0; r < N; ++r) {
      const int64_t row = offset + r * q_.w;
      V pixels[4], last[4];
      for (int i = 0; i < 4; ++i) {
        const Quad& quad = quads.quad[i];
        if (INNER || (quad.rows > 0 && quad.y - 1 + r >= 0 && quad.y - 1 + r < q_.h)) {
          __builtin_prefetch(at[i] + row + kPlanesAhead * plane_);  // planes lie far apart
          pixels[i] = Q::load(at[i] + row, reads[i]);
          if (M == 4) last[i] = Q::load(at[i] + row + 4, more[i]);
        } else {
          pixels[i] = last[i] = V::zero();
        }
      }
      Q::template split<M, 4>(pixels, d[r]);
      if constexpr (M == 4) Q::template split<M, 2>(last, d[r] + 4);
      Transform::input(d[r]);
    }
    for (int x = 0; x < N; ++x) {
      V column[N];
      for (int r = 0; r < N; ++r) column[r] = d[r][x];
      Transform::input(column);
      for (int r = 0; r < N; ++r) to[r][x] = column[r];
    }
  }

  // G blocks of output channels of B registers of tiles
  template <int B, int G>
  void channels(const Quads (&quads)[B], int64_t block, const float* inputs, int64_t pitch, float* products) const {
    constexpr int O = G * kChannelBlock;
    const int64_t weights = P * depth_ * kChannelBlock;  // of a block
    const float* weight = q_.weight + block * weights;
    for (int p = 0; p < P; ++p) {
      V sum[O][B];
      for (int o = 0; o < O; ++o)
        for (int b = 0; b < B; ++b) sum[o][b] = V::zero();
      const float* x = inputs + p * pitch;
      const float* w = weight + p * depth_ * kChannelBlock;
      for (int64_t c = 0; c < depth_; ++c, x += B * L, w += kChannelBlock) {
        V in[B];
        for (int b = 0; b < B; ++b) in[b] = V::load(x + b * L);
        for (int g = 0; g < G; ++g) __builtin_prefetch(w + g * weights + kWeightsAhead);
        for (int g = 0; g < G; ++g)
          for (int o = 0; o < kChannelBlock; ++o) {
            const V factor = V::set1(w[g * weights + o]);
            for (int b = 0; b < B; ++b)
              sum[g * kChannelBlock + o][b] = multiply_add<Q, PAIRS>(factor, in[b], sum[g * kChannelBlock + o][b]);
          }
      }
      for (int o = 0; o < O; ++o)
        for (int b = 0; b < B; ++b) sum[o][b].store(products + ((o * B + b) * P + p) * L);
    }
    for (int o = 0; o < O; ++o) {
      const int64_t channel = block * kChannelBlock + o;
      if (channel >= q_.c_out) break;
      with_type(q_.output.dtype, [&](auto* type) {
        for (int b = 0; b < B; ++b) finish(quads[b], channel, products + (o * B + b) * P * L, type);
      });
    }
  }

  template <class T>
  void finish(const Quads& quads, int64_t channel, const float* products, T*) const {
    V rows[N][M];
    for (int r = 0; r < N; ++r) {
      V m[N];
      for (int x = 0; x < N; ++x) m[x] = V::load(products + (r * N + x) * L);
      Transform::output(m, rows[r]);
    }
    V y[M][M];
    for (int x = 0; x < M; ++x) {
      V column[N], out[M];
      for (int r = 0; r < N; ++r) column[r] = rows[r][x];
      Transform::output(column, out);
      for (int r = 0; r < M; ++r) y[r][x] = out[r];
    }
    const V bias = V::set1(q_.bias[channel]);
    const bool relu = channel >= q_.relu_from;
    T* to = static_cast<T*>(const_cast<void*>(q_.output.data)) + channel * plane_;
    const T* residual = static_cast<const T*>(q_.residual.data);
    for (int r = 0; r < M; ++r) {
      V pixels[4];
      Q::merge(y[r], pixels);
      for (int i = 0; i < 4; ++i) {
        const Quad& quad = quads.quad[i];
        if (r >= quad.rows) continue;
        V out = pixels[i] + bias;
        if (residual != nullptr)
          out = out + Q::load(residual + channel * plane_ + quad.residual + r * q_.w, quad.stores);
        if (relu) out = out.relu();
        Q::store(to + quad.output + r * q_.w, quad.stores, out);
      }
    }
  }
};
