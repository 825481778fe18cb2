// The exchange with pixels innermost (contiguous NCHW). Included inside the namespace of one instruction set.
//
// The same three steps as in channels_last.h, with the vectors along a row of pixels: the products read the planes as
// they are, and the horizontal interpolation picks its sources out of two registers.

template <class V, class T>
class Planar {
  using A = typename V::A;
  static constexpr int64_t kBlock = 16;  // channels of same-size products at a time: they stay in the first cache

  struct Up {
    Row<T> direct[2];
    A* low;      // rows after the 1x1 convolution: [2][channel][pixel]
    A* blended;  // one channel's row, and room to read past it
    int64_t held[2];
  };
  struct Work {
    Up up[kMaxInputs];
    A* base;  // [kBlock][pixel]
    T* gathered[kMaxInputs];
    A* wide;  // the row in front of the projection [channel][pixel]
    A* projected;
  };
  struct Columns {  // horizontal sources of one smaller input
    int64_t* first;            // of each vector: the pixel that its indices count from
    int32_t *i0, *i1;          // per output pixel, from there
    A *w0, *w1;
  };

 public:
  static void run(const Problem& q) { Planar(q).run(); }

 private:
  const Problem& q_;
  const Roles roles_;
  const int64_t padded_;  // output row, whole vectors
  Columns columns_[kMaxInputs];
  A* bias_;
  A* projection_bias_;
  A* weight_[kMaxInputs];  // [output channel][input channel]
  A* projection_;
  A* shared_[kMaxInputs];
  bool share_ = false;

  explicit Planar(const Problem& q) : q_(q), roles_(q), padded_(round_up(q.output.w, V::L)) {}

  void run() {
    Arena measure(nullptr);
    lay_out(measure);
    Arena arena(scratch(0, measure.used()));
    lay_out(arena);
    fill_tables();
    make_shared_rows();
    const int64_t rows = q_.output.n * q_.output.h;
    const int64_t row_cost = padded_ * q_.channels * (1 + roles_.ups);
    parallel_for(rows, 1 + (1 << 15) / largest(1, row_cost), &Planar::rows_body, this);
  }

  void lay_out(Arena& arena) {
    for (int u = 0; u < roles_.ups; ++u)
      columns_[u] = {arena.take<int64_t>(padded_ / V::L), arena.take<int32_t>(padded_), arena.take<int32_t>(padded_),
                     arena.take<A>(padded_), arena.take<A>(padded_)};
    bias_ = arena.take<A>(q_.channels);
    projection_bias_ = arena.take<A>(q_.projection.data ? q_.projection.rows : 0);
    for (int j = 0; j < q_.count; ++j)
      weight_[j] = q_.weight[j].data ? arena.take<A>(q_.channels * q_.input[j].c) : nullptr;
    projection_ = arena.take<A>(q_.projection.data ? q_.projection.rows * q_.channels : 0);
  }

  void fill_tables() {
    for (int u = 0; u < roles_.ups; ++u) {
      Columns& columns = columns_[u];
      for (int64_t x = 0; x < padded_; ++x) {
        const int64_t inside = x < q_.output.w ? x : q_.output.w - 1;
        const Source<A> s = source_of<A>(q_.mode, inside, q_.input[roles_.up[u]].w, q_.output.w);
        if (x % V::L == 0) columns.first[x / V::L] = s.i0;
        // an enlargement: L outputs span at most L + 1 sources
        columns.i0[x] = static_cast<int32_t>(s.i0 - columns.first[x / V::L]);
        columns.i1[x] = static_cast<int32_t>(s.i1 - columns.first[x / V::L]);
        columns.w0[x] = s.w0;
        columns.w1[x] = s.w1;
      }
    }
    widen_bias<T>(q_.bias, q_.channels, bias_);
    if (q_.projection.data) {
      widen_bias<T>(q_.projection_bias, q_.projection.rows, projection_bias_);
      widen_matrix(q_.projection, projection_);
    }
    for (int j = 0; j < q_.count; ++j)
      if (weight_[j]) widen_matrix(q_.weight[j], weight_[j]);
  }

  static void widen_matrix(const Matrix& w, A* to) {
    for (int64_t m = 0; m < w.rows; ++m)
      for (int64_t k = 0; k < w.cols; ++k)
        to[m * w.cols + k] = Convert<T>::wide(static_cast<const T*>(w.data)[m * w.row_stride + k * w.col_stride]);
  }

  int64_t low_stride(int j) const { return round_up(q_.input[j].w, V::L); }
  int64_t low_row_size(int j) const { return low_stride(j) * q_.channels; }

  void make_shared_rows() {
    int64_t total = 0;
    for (int u = 0; u < roles_.ups; ++u) {
      const Image& x = q_.input[roles_.up[u]];
      if (q_.weight[roles_.up[u]].data) total += x.n * x.h * low_row_size(roles_.up[u]);
    }
    share_ = total > 0 && share_low_rows(q_, roles_, total * sizeof(A));
    if (!share_) return;
    A* next = static_cast<A*>(scratch(2, total * sizeof(A)));
    int64_t rows = 0;
    for (int u = 0; u < roles_.ups; ++u) {
      const int j = roles_.up[u];
      shared_[u] = next;
      if (!q_.weight[j].data) continue;
      next += q_.input[j].n * q_.input[j].h * low_row_size(j);
      rows += q_.input[j].n * q_.input[j].h;
    }
    parallel_for(rows, 1, &Planar::shared_body, this);
  }

  static void shared_body(int64_t begin, int64_t end, void* context) {
    Planar& self = *static_cast<Planar*>(context);
    Work work = self.thread_work();
    for (int u = 0; u < self.roles_.ups; ++u) {
      const int j = self.roles_.up[u];
      if (!self.q_.weight[j].data) continue;
      const int64_t h = self.q_.input[j].h, rows = self.q_.input[j].n * h;
      for (int64_t r = begin > 0 ? begin : 0; r < end && r < rows; ++r)
        self.low_row(j, r / h, r % h, self.shared_[u] + r * self.low_row_size(j), work);
      begin -= rows;
      end -= rows;
    }
  }

  Work thread_work() const {
    Work work;
    Arena measure(nullptr);
    lay_out(work, measure);
    Arena arena(scratch(1, measure.used()));
    lay_out(work, arena);
    return work;
  }

  void lay_out(Work& work, Arena& arena) const {
    for (int j = 0; j < q_.count; ++j) {
      const Image& x = q_.input[j];
      const bool direct = x.sw == 1 || x.w == 1;
      work.gathered[j] = arena.take<T>(direct ? 0 : 2 * x.w * x.c);
    }
    for (int u = 0; u < roles_.ups; ++u) {
      const int j = roles_.up[u];
      Up& up = work.up[u];
      up.low = arena.take<A>(q_.weight[j].data && !share_ ? 2 * low_row_size(j) : 0);
      up.blended = arena.take<A>(low_stride(j) + 2 * V::L);
      up.held[0] = up.held[1] = -1;
    }
    work.base = arena.take<A>(roles_.bases ? kBlock * padded_ : 0);
    work.wide = arena.take<A>(q_.projection.data ? q_.channels * padded_ : 0);
    work.projected = arena.take<A>(q_.projection.data ? q_.projection.rows * padded_ : 0);
  }

  void low_row(int j, int64_t n, int64_t y, A* to, Work& work) const {
    const Image& x = q_.input[j];
    const Row<T> row = channel_row(x, n, y, work.gathered[j]);
    planar_products<V>(weight_[j], q_.channels, x.c, row.p, row.step, x.w, to, low_stride(j), false);
  }

  const A* low(int u, int64_t n, int64_t y, Work& work) const {
    const int j = roles_.up[u];
    const int64_t row = n * q_.input[j].h + y;
    if (share_) return shared_[u] + row * low_row_size(j);
    Up& up = work.up[u];
    A* slot = up.low + (y & 1) * low_row_size(j);
    if (up.held[y & 1] != row) {
      low_row(j, n, y, slot, work);
      up.held[y & 1] = row;
    }
    return slot;
  }

  template <class From>
  static void blend(const From* a, const From* b, A wa, A wb, int64_t pixels, A* to) {
    const V va = V::set1(wa), vb = V::set1(wb);
    int64_t x = 0;
    for (; x + V::L <= pixels; x += V::L) V::fma(V::load(b + x), vb, V::load(a + x) * va).store(to + x);
    const int rest = static_cast<int>(pixels - x);
    if (rest > 0) V::fma(V::load(b + x, rest), vb, V::load(a + x, rest) * va).store(to + x);
  }

  template <class From>
  static void copy(const From* a, int64_t pixels, A* to) {
    int64_t x = 0;
    for (; x + V::L <= pixels; x += V::L) V::load(a + x).store(to + x);
    if (x < pixels) V::load(a + x, static_cast<int>(pixels - x)).store(to + x);
  }

  // Channel c of the row that an output row interpolates horizontally.
  template <class From>
  void blend_rows(const From* a, const From* b, const Source<A>& s, int64_t pixels, A* to) const {
    if (s.w1 == A(0))
      copy(a, pixels, to);
    else
      blend(a, b, s.w0, s.w1, pixels, to);
  }

  static void rows_body(int64_t begin, int64_t end, void* context) {
    const Planar& self = *static_cast<const Planar*>(context);
    Work work = self.thread_work();
    for (int64_t r = begin; r < end; ++r) self.output_row(r / self.q_.output.h, r % self.q_.output.h, work);
  }

  void output_row(int64_t n, int64_t y, Work& work) const {
    Row<T> identity[kMaxInputs], base[kMaxInputs];
    for (int i = 0; i < roles_.identities; ++i) {
      const int j = roles_.identity[i];
      identity[i] = channel_row(q_.input[j], n, y, work.gathered[j]);
    }
    for (int b = 0; b < roles_.bases; ++b) {
      const int j = roles_.base[b];
      base[b] = channel_row(q_.input[j], n, y, work.gathered[j]);
    }
    Source<A> source[kMaxInputs];
    const A* lows[kMaxInputs][2];
    for (int u = 0; u < roles_.ups; ++u) {
      const int j = roles_.up[u];
      const Image& x = q_.input[j];
      source[u] = source_of<A>(q_.mode, y, x.h, q_.output.h);
      const bool two = source[u].w1 != A(0);
      if (q_.weight[j].data) {
        lows[u][0] = low(u, n, source[u].i0, work);
        lows[u][1] = two ? low(u, n, source[u].i1, work) : nullptr;
      } else {
        work.up[u].direct[0] = channel_row(x, n, source[u].i0, work.gathered[j]);
        if (two) work.up[u].direct[1] = channel_row(x, n, source[u].i1, work.gathered[j] + x.w * x.c);
      }
    }
    T* out = static_cast<T*>(const_cast<void*>(q_.output.data)) + n * q_.output.sn + y * q_.output.sh;
    for (int64_t block = 0; block < q_.channels; block += kBlock) {
      const int64_t end = block + kBlock < q_.channels ? block + kBlock : q_.channels;
      for (int b = 0; b < roles_.bases; ++b) {
        const int64_t in = q_.input[roles_.base[b]].c;
        planar_products<V>(weight_[roles_.base[b]] + block * in, end - block, in, base[b].p, base[b].step, q_.output.w,
                           work.base, padded_, b > 0);
      }
      for (int64_t c = block; c < end; ++c) {
        for (int u = 0; u < roles_.ups; ++u) {
          const int j = roles_.up[u];
          const Image& x = q_.input[j];
          A* to = work.up[u].blended;
          if (q_.weight[j].data) {
            const A* second = lows[u][1] ? lows[u][1] + c * low_stride(j) : nullptr;
            blend_rows(lows[u][0] + c * low_stride(j), second, source[u], x.w, to);
          } else {
            const Row<T>* rows = work.up[u].direct;
            blend_rows(rows[0].p + c * rows[0].step, rows[1].p + c * rows[1].step, source[u], x.w, to);
          }
        }
        const A* sums = roles_.bases ? work.base + (c - block) * padded_ : nullptr;
        if (q_.projection.data)
          combine(c, sums, identity, work, work.wide + c * padded_, padded_);
        else
          combine(c, sums, identity, work, out + c * q_.output.sc, q_.output.w);
      }
    }
    if (q_.projection.data) project(out, work);
  }

  template <class Out>
  void combine(int64_t c, const A* sums, const Row<T>* identity, const Work& work, Out* out, int64_t room) const {
    const bool bilinear = q_.mode != Mode::kNearest;
    for (int64_t x = 0; x < q_.output.w; x += V::L) {
      const int inside = static_cast<int>(q_.output.w - x < V::L ? q_.output.w - x : V::L);
      V acc = V::set1(bias_[c]);
      if (sums) acc = acc + V::load(sums + x);
      for (int i = 0; i < roles_.identities; ++i) {
        const T* row = identity[i].p + c * identity[i].step + x;
        acc = acc + (inside == V::L ? V::load(row) : V::load(row, inside));
      }
      for (int u = 0; u < roles_.ups; ++u) {
        const Columns& columns = columns_[u];
        const A* from = work.up[u].blended + columns.first[x / V::L];
        const V first = V::pick(from, columns.i0 + x);
        if (bilinear) {
          acc = V::fma(V::load(columns.w0 + x), first, acc);
          acc = V::fma(V::load(columns.w1 + x), V::pick(from, columns.i1 + x), acc);
        } else {
          acc = acc + first;
        }
      }
      if (q_.relu) acc = acc.relu();
      x + V::L <= room ? acc.store(out + x) : acc.store(out + x, inside);
    }
  }

  void project(T* out, Work& work) const {
    planar_products<V>(projection_, q_.projection.rows, q_.channels, work.wide, padded_, q_.output.w, work.projected,
                       padded_, false);
    for (int64_t c = 0; c < q_.projection.rows; ++c) {
      const V bias = V::set1(projection_bias_[c]);
      const A* from = work.projected + c * padded_;
      T* to = out + c * q_.output.sc;
      int64_t x = 0;
      for (; x + V::L <= q_.output.w; x += V::L) (V::load(from + x) + bias).store(to + x);
      if (x < q_.output.w) (V::load(from + x) + bias).store(to + x, static_cast<int>(q_.output.w - x));
    }
  }
};
