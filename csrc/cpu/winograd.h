// 3x3 convolutions of stride 1 by Winograd's minimal filtering (Lavin and Gray 2015): output tiles of M x M pixels cost
// (M + 2)^2 multiplications a channel pair in place of 9 M^2. Included inside the namespace of one instruction set.
//
// Tiles lie in the lanes of a register, so that any number of channels is as good as any other. A block of a few such
// registers goes through three steps: transform all its input channels (they stay in the second cache), then for some
// output channels at a time (M + 2)^2 small matrix products into a buffer that stays in a cache as well, from where
// they are transformed back, biased, added to the residual and stored.

template <class V, int M>
struct WinogradTransform;

// Points 0, +-sqrt(1/2), infinity: those of 4x4 tiles, in whose weights these find theirs.
template <class V>
struct WinogradTransform<V, 2> {
  static void input(V (&d)[4]) {
    const V h = V::set1(0.70710678118f), d1 = d[1], d2 = d[2];
    d[0] = V::fma(V::set1(-2.f), d2, d[0]);
    d[1] = V::fma(h, d1, d2);
    d[2] = V::fnma(h, d1, d2);
    d[3] = V::fma(V::set1(-0.5f), d1, d[3]);
  }
  static void output(const V (&m)[4], V (&y)[2]) {
    y[0] = V::fma(V::set1(-1.5f), m[1] + m[2], m[0]);
    y[1] = V::fma(V::set1(-1.06066017178f), m[1] - m[2], m[3]);
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
  static constexpr int kPlaces = Q::kPlaces, kWidth = Q::kSide * M;  // places of a register, pixels of their rows

 public:
  static int64_t vectors(const Convolution& q) {  // registers of tiles
    return ceil_div(q.n * ceil_div(q.h, M) * ceil_div(q.w, kWidth), kPlaces);
  }
  // Registers of a block: what its transformed inputs may take of the second cache decides.
  static int64_t block(const Convolution& q) {
    const int64_t fits = Q::kBlockBytes / (P * depth(q) * L * static_cast<int64_t>(sizeof(float)));
    const int64_t most = fits < 1 ? 1 : fits > Q::kMost ? Q::kMost : fits;
    return most > Q::kWide ? most / Q::kWide * Q::kWide : most;
  }
  // Registers first .. first + count - 1 (at most Q::kMost), output channels of the blocks from .. to - 1.
  static void run(const Convolution& q, int64_t first, int count, int64_t from, int64_t to) {
    if constexpr (Q::kMost > Q::kWide) {  // more than the registers hold at once
      if (const int groups = count / Q::kWide; groups > 0) {
        Winograd(q).template many<Q::kWide>(first, groups, from, to);
        first += groups * Q::kWide, count -= groups * Q::kWide;
      }
    }
    if constexpr (Q::kWide == 2) {
      if (count > 0) Winograd(q).template tiles<1, 2>(first, from, to);
    } else {
      static_assert(Q::kWide == 4, "registers of sums");
      switch (count) {
        case 0: return;
        case 1: return Winograd(q).template tiles<1, 4>(first, from, to);
        case 2: return Winograd(q).template tiles<2, 2>(first, from, to);
        case 3: return Winograd(q).template tiles<3, 1>(first, from, to);
        default: return Winograd(q).template tiles<4, 1>(first, from, to);
      }
    }
  }

 private:
  static constexpr int64_t kPlanesAhead = 2;
  struct Place {  // of neighbouring tiles; offsets in elements, from the beginning of the tensors
    int64_t y;  // first row
    int64_t input;  // of the first pixel that is read: one row up, one column to the left
    int64_t output, residual;
    int rows;  // to store; 0: there is no such place
    typename Q::template Columns<M> columns;
  };
  struct Places {
    Place at[kPlaces];
    bool inner;  // all that they read is inside of the image, but for columns that masks leave out for nothing
    bool whole;  // all tiles are inside of the image
  };
  const Convolution& q_;
  const int64_t plane_, depth_;
  static int64_t depth(const Convolution& q) { return PAIRS ? ceil_div(q.c_in, 2) : q.c_in; }
  explicit Winograd(const Convolution& q) : q_(q), plane_(q.h * q.w), depth_(depth(q)) {}

  void place(int64_t vector, Places& to) const {
    const int64_t across = ceil_div(q_.w, kWidth), down = ceil_div(q_.h, M);
    to.inner = to.whole = true;
    for (int i = 0; i < kPlaces; ++i) {
      const int64_t place = vector * kPlaces + i, row = place / across, n = row / down;
      const int64_t y = row % down * M, x = place % across * kWidth, at = y * q_.w + x;
      Place& t = to.at[i];
      t.y = y;
      t.rows = n >= q_.n ? 0 : static_cast<int>(q_.h - y < M ? q_.h - y : M);
      t.input = n * q_.source[0].image_stride + at - q_.w - 1;
      t.output = n * q_.output.image_stride + at;
      t.residual = n * q_.residual.image_stride + at;
      t.columns = Q::template columns<M>(x, q_.w);
      to.inner = to.inner && n < q_.n && y > 0 && y + M < q_.h && Q::template all_columns<M>(x, q_.w);
      to.whole = to.whole && t.rows == M && x + kWidth <= q_.w;
    }
  }

  template <int B, int G>
  void tiles(int64_t first, int64_t from, int64_t to) const {
    const int64_t step = B * L, pitch = depth_ * step + L;  // one line more: powers of two would share cache sets
    constexpr int64_t kProducts = P * G * kChannelBlock * B * L;
    float* products = static_cast<float*>(scratch(0, (kProducts + P * pitch) * sizeof(float)));
    float* inputs = products + kProducts;
    Places places[B];
    for (int b = 0; b < B; ++b) {
      place(first + b, places[b]);
      transform(places[b], inputs + b * L, step, pitch);
    }
    int64_t block = from;
    for (; block + G <= to; block += G) channels<B, G>(places, block, inputs, pitch, products);
    if constexpr (G > 2)
      if (block + 3 == to) channels<B, 3>(places, block, inputs, pitch, products), block += 3;
    if constexpr (G > 2)
      if (block + 2 == to) channels<B, 2>(places, block, inputs, pitch, products), block += 2;
    if (block < to) channels<B, 1>(places, block, inputs, pitch, products);
  }

  void transform(const Places& places, float* to, int64_t step, int64_t pitch) const {
    with_type(q_.source[0].dtype, [&](auto* type) {
      const auto* from = static_cast<decltype(type)>(const_cast<void*>(q_.source[0].data));
      if (places.inner)
        transform_inputs<true>(from, places, to, step, pitch);
      else
        transform_inputs<false>(from, places, to, step, pitch);
    });
  }

  template <bool INNER, class T>
  void transform_inputs(const T* from, const Places& places, float* to, int64_t step, int64_t pitch) const {
    const T* at[kPlaces];
    typename Q::template Columns<M> columns[kPlaces];
    for (int i = 0; i < kPlaces; ++i) at[i] = from + places.at[i].input, columns[i] = places.at[i].columns;
    for (int64_t c = 0; c < q_.c_in; c += PAIRS ? 2 : 1, to += step) {
      V elements[N][N];
      transform_plane<INNER>(places, at, columns, c * plane_, elements);
      if constexpr (PAIRS) {
        V second[N][N];
        if (c + 1 < q_.c_in)
          transform_plane<INNER>(places, at, columns, (c + 1) * plane_, second);
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

  // Groups of B registers, any number of blocks of channels at a time: as many as kProductBytes hold. The transformed
  // inputs of a point stay in the first cache for all of them, and the weights of a point for all registers.
  template <int B>
  void many(int64_t first, int count, int64_t from, int64_t to) const {
    const int64_t step = count * B * L, pitch = depth_ * step + L;
    const int64_t size = P * kChannelBlock * step;  // of the products of a block
    const int64_t fits = Q::kProductBytes / (size * static_cast<int64_t>(sizeof(float)));
    const int64_t group = fits < 1 ? 1 : fits > to - from ? to - from : fits;
    float* products = static_cast<float*>(scratch(0, (group * size + P * pitch) * sizeof(float)));
    float* inputs = products + group * size;
    Places places[Q::kMost];
    for (int b = 0; b < count * B; ++b) {
      place(first + b, places[b]);
      transform(places[b], inputs + b / B * depth_ * B * L + b % B * L, B * L, pitch);
    }
    for (int64_t block = from; block < to; block += group) {
      const int64_t blocks = to - block < group ? to - block : group;
      for (int p = 0; p < P; ++p)
        for (int64_t g = 0; g < blocks; ++g)
          for (int k = 0; k < count; ++k)
            multiply<B, 1>(p, block + g, inputs + p * pitch + k * depth_ * B * L,
                           products + g * size + k * B * kChannelBlock * P * L);
      for (int64_t g = 0; g < blocks; ++g)
        for (int k = 0; k < count; ++k)
          finish_all<B, 1>(places + k * B, block + g, products + g * size + k * B * kChannelBlock * P * L);
    }
  }

  // The transformed tiles of one channel.
  template <bool INNER, class T>
  void transform_plane(const Places& places, const T* const (&at)[kPlaces],
                       const typename Q::template Columns<M> (&columns)[kPlaces], int64_t offset, V (&to)[N][N]) const {
    V d[N][N];
    for (int r = 0; r < N; ++r) {
      const auto inside = [&](int i) {
        const int64_t y = places.at[i].y - 1 + r;
        return places.at[i].rows > 0 && y >= 0 && y < q_.h;
      };
      // planes lie far apart: the next ones are asked for
      Q::template read<M, INNER>(at, columns, offset + r * q_.w, kPlanesAhead * plane_, inside, d[r]);
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
  void channels(const Places (&places)[B], int64_t block, const float* inputs, int64_t pitch, float* products) const {
    for (int p = 0; p < P; ++p) multiply<B, G>(p, block, inputs + p * pitch, products);
    finish_all<B, G>(places, block, products);
  }

  // Their products at a point, over all input channels.
  template <int B, int G>
  void multiply(int p, int64_t block, const float* x, float* products) const {
    constexpr int O = G * kChannelBlock;
    const int grid = tile_of(q_.packed) + 2;  // it may have points that are not needed here, before the last of a row
    const auto in_grid = [grid](int i) { return i == N - 1 ? grid - 1 : i; };
    const int64_t weights = grid * grid * depth_ * kChannelBlock;  // of a block
    const float* w = q_.weight + block * weights + (in_grid(p / N) * grid + in_grid(p % N)) * depth_ * kChannelBlock;
    V sum[O][B];
    for (int o = 0; o < O; ++o)
      for (int b = 0; b < B; ++b) sum[o][b] = V::zero();
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

  template <int B, int G>
  void finish_all(const Places* places, int64_t block, const float* products) const {
    for (int o = 0; o < G * kChannelBlock; ++o) {
      const int64_t channel = block * kChannelBlock + o;
      if (channel >= q_.c_out) break;
      with_type(q_.output.dtype, [&](auto* type) {
        for (int b = 0; b < B; ++b) finish(places[b], channel, products + (o * B + b) * P * L, type);
      });
    }
  }

  template <class T>
  void finish(const Places& places, int64_t channel, const float* products, T*) const {
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
    if (residual != nullptr) residual += channel * plane_;
    for (int r = 0; r < M; ++r) Q::write(places, r, y[r], bias, relu, r * q_.w, to, residual);
  }
};
