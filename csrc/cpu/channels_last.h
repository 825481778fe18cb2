// The exchange with channels innermost. Included inside the namespace of one instruction set.
//
// An output row is made of three steps, panel of channels by panel: the two low-resolution rows of each smaller input
// go through their 1x1 convolution (kept until no output row needs them), are blended vertically into one, and that is
// interpolated horizontally while everything is added, activated and stored. Nothing but the result is written to
// memory beyond the caches. With a projection, the row stays in the cache too and only its product is written.

template <class V, class T, class P>
class ChannelsLast {
  using A = typename V::A;
  using Operand = typename P::Operand;
  static constexpr bool kWiden = !std::is_same<T, Operand>::value;

  struct Up {  // a smaller input, for one thread
    Row<T> direct[2];  // rows y0 and y1 as they are, for an input without a weight
    A* low;            // rows after the 1x1 convolution: [2][panel][pixel][channel], each with its tail behind
    A* blended;        // [pixel][channel] of one panel, or of the tail
    int64_t held[2];   // which rows low holds
  };
  struct Work {  // what one thread needs
    Up up[kMaxInputs];
    A* base;            // same-size products, one panel [pixel][channel]
    T* gathered;        // a row of another layout
    T* identity[kMaxInputs];
    Operand* operand[kMaxInputs];
    Operand* wide;      // the row in front of the projection [pixel][channel]
    A* projected;
  };

 public:
  static void run(const Problem& q) { ChannelsLast(q).run(); }

 private:
  const Problem& q_;
  const Roles roles_;
  const int tail_, projected_tail_;  // channels beyond the panels (tail.h)
  const Panels<V> panels_, projected_;
  Tap<A>* taps_;  // [W][ups]
  A* bias_;
  A* projection_bias_;
  Operand* packed_[kMaxInputs];
  Operand* packed_projection_;
  A* packed_projection_tail_;  // [kTailOutputs][in rounded up to vectors]
  A* shared_[kMaxInputs];
  A* packed_tail_[kMaxInputs];
  bool share_ = false;

  explicit ChannelsLast(const Problem& q)
      : q_(q),
        roles_(q),
        tail_(tail(q, roles_)),
        projected_tail_(P::kTails && q.projection.data ? projection_tail<V>(q.projection.rows) : 0),
        panels_(q.channels - tail_),
        projected_(q.projection.data ? q.projection.rows - projected_tail_ : 1) {}

  // The tail's sum wants what an exchange unit has: inputs that are exactly 2, 4, 8 times smaller, in that order.
  static int tail(const Problem& q, const Roles& roles) {
    bool fits = P::kTails && roles.bases == 0 && roles.ups >= 1 && roles.ups <= 3 && q.projection.data == nullptr &&
                q.mode == Mode::kBilinear && q.output.w % kRun == 0;
    for (int u = 0; u < roles.ups; ++u) {
      const int j = roles.up[u];
      fits = fits && q.weight[j].data && q.input[j].w << (u + 1) == q.output.w;
    }
    return fits ? tail_channels<V>(q.channels) : 0;
  }

  void run() {
    Arena measure(nullptr);
    lay_out(measure);
    Arena arena(scratch(0, measure.used()));
    lay_out(arena);
    fill_tables();
    pack_all();
    make_shared_rows();
    const int64_t rows = q_.output.n * q_.output.h;
    const int64_t row_cost = q_.output.w * panels_.padded() * (1 + roles_.ups);
    parallel_for(rows, 1 + (1 << 15) / largest(1, row_cost), &ChannelsLast::rows_body, this);
  }

  void lay_out(Arena& arena) {
    taps_ = arena.take<Tap<A>>(q_.output.w * roles_.ups);
    bias_ = arena.take<A>(panels_.padded() + tail_);
    projection_bias_ = arena.take<A>(projected_.padded() + projected_tail_);
    for (int j = 0; j < q_.count; ++j)
      packed_[j] = q_.weight[j].data ? arena.take<Operand>(P::packed_size(q_.input[j].c, panels_)) : nullptr;
    for (int j = 0; j < q_.count; ++j)
      packed_tail_[j] = arena.take<A>(q_.weight[j].data ? tail_ * round_up(q_.input[j].c, V::L) : 0);
    packed_projection_ = arena.take<Operand>(q_.projection.data ? P::packed_size(q_.channels, projected_) : 0);
    packed_projection_tail_ = arena.take<A>(projected_tail_ ? kTailOutputs * round_up(q_.channels, V::L) : 0);
  }

  void fill_tables() {
    for (int u = 0; u < roles_.ups; ++u)
      for (int64_t x = 0; x < q_.output.w; ++x) {
        const Source<A> s = source_of<A>(q_.mode, x, q_.input[roles_.up[u]].w, q_.output.w);
        taps_[x * roles_.ups + u] = {static_cast<int32_t>(s.i0), static_cast<int32_t>(s.i1), s.w0, s.w1};
      }
    widen_bias<T>(q_.bias, panels_.padded() + tail_, bias_);
    widen_bias<T>(q_.projection_bias, projected_.padded() + projected_tail_, projection_bias_);
  }

  void pack_all() {
    for (int j = 0; j < q_.count; ++j)
      if (q_.weight[j].data) {
        pack(q_.weight[j], panels_, packed_[j]);
        if (tail_) pack_tail<T>(q_.weight[j], panels_.channels, tail_, round_up(q_.input[j].c, V::L), packed_tail_[j]);
      }
    if (q_.projection.data) pack(q_.projection, projected_, packed_projection_);
    if (projected_tail_)
      pack_tail<T>(q_.projection, projected_.channels, kTailOutputs, round_up(q_.channels, V::L),
                   packed_projection_tail_);
  }

  struct Packing {
    const Matrix& weight;
    const Panels<V>& panels;
    Operand* to;
  };
  static void pack(const Matrix& weight, const Panels<V>& panels, Operand* to) {
    Packing packing{weight, panels, to};
    const int64_t grain = 1 + (1 << 15) / largest(1, weight.cols * V::PV * V::L);
    parallel_for(
        panels.count, grain,
        [](int64_t begin, int64_t end, void* context) {
          const Packing& k = *static_cast<Packing*>(context);
          for (int64_t p = begin; p < end; ++p) P::pack(k.weight, k.panels, p, k.to);
        },
        &packing);
  }

  // Vectors that run over a tail read and write a little beyond it.
  int64_t low_row_size(int j) const { return q_.input[j].w * (panels_.padded() + tail_) + (tail_ ? 2 * V::L : 0); }

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
    parallel_for(rows, 1, &ChannelsLast::shared_body, this);
  }

  static void shared_body(int64_t begin, int64_t end, void* context) {
    ChannelsLast& self = *static_cast<ChannelsLast*>(context);
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
    const int64_t panel = V::PV * V::L;
    int64_t largest_row = 0;
    for (int j = 0; j < q_.count; ++j) {
      const Image& x = q_.input[j];
      const bool direct = x.sc == 1 || x.c == 1;
      largest_row = largest(largest_row, direct ? 0 : x.w * x.c);
      work.identity[j] = arena.take<T>(direct || q_.weight[j].data ? 0 : 2 * x.w * x.c);
      work.operand[j] = arena.take<Operand>(q_.weight[j].data ? x.w * round_up(x.c, P::kStepChannels) : 0);
    }
    work.gathered = arena.take<T>(largest_row);
    for (int u = 0; u < roles_.ups; ++u) {
      const int j = roles_.up[u];
      Up& up = work.up[u];
      up.low = arena.take<A>(q_.weight[j].data && !share_ ? 2 * low_row_size(j) : 0);
      up.blended = arena.take<A>(q_.input[j].w * panel + 2 * V::L);
      up.held[0] = up.held[1] = -1;
    }
    work.base = arena.take<A>(roles_.bases ? q_.output.w * panel : 0);
    const int64_t wide = round_up(panels_.padded(), P::kStepChannels);
    work.wide = arena.take<Operand>(q_.projection.data ? q_.output.w * wide : 0);
    if (q_.projection.data && arena.real())  // what pads a pixel's channels is multiplied too, by zeros
      for (int64_t x = 0; x < q_.output.w; ++x)
        for (int64_t c = panels_.padded(); c < wide; ++c) work.wide[x * wide + c] = Operand{};
    work.projected = arena.take<A>(q_.projection.data ? q_.output.w * panel : 0);
  }

  // Row y of input j as the left side of a product.
  Row<Operand> operand_row(int j, int64_t n, int64_t y, Work& work) const {
    const Image& x = q_.input[j];
    const Row<T> row = pixel_row(x, n, y, work.gathered);
    if constexpr (!kWiden) {
      if (x.c % P::kStepChannels == 0) return {row.p, row.step};
    }
    const int64_t padded = round_up(x.c, P::kStepChannels);
    Operand* to = work.operand[j];
    for (int64_t w = 0; w < x.w; ++w) {
      if constexpr (kWiden) {
        int64_t c = 0;
        for (; c + V::L <= x.c; c += V::L) V::load(row.p + w * row.step + c).store(to + w * padded + c);
        if (c < x.c) V::load(row.p + w * row.step + c, x.c - c).store(to + w * padded + c, x.c - c);
      } else {
        P::pad(row.p + w * row.step, x.c, to + w * padded);
      }
    }
    return {to, padded};
  }

  void low_row(int j, int64_t n, int64_t y, A* to, Work& work) const {
    const Row<Operand> row = operand_row(j, n, y, work);
    const Image& x = q_.input[j];
    for (int64_t p = 0; p < panels_.count; ++p)
      P::panel(row.p, row.step, x.w, x.c, packed_[j], panels_, p, to + panels_.start(p) * x.w, false);
    if constexpr (P::kTails)
      with_tail([&](auto t) {
        tail_products<V, t>(row.p, row.step, x.w, x.c, packed_tail_[j], to + panels_.padded() * x.w);
      });
  }

  // Calls f with the number of tail channels as a constant, if there are any.
  template <class F>
  void with_tail(F f) const {
    if constexpr (P::kTails) {
      if (tail_ == 2) f(std::integral_constant<int, 2>{});
      if (tail_ == 4) f(std::integral_constant<int, 4>{});
    }
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
  static void blend_pixels(const From* a, int64_t a_step, const From* b, int64_t b_step, A wa, A wb, int64_t pixels,
                           int vectors, int tail, A* to) {
    const V va = V::set1(wa), vb = V::set1(wb);
    const int full = tail == V::L ? vectors : vectors - 1;
    for (int64_t x = 0; x < pixels; ++x, a += a_step, b += b_step, to += vectors * V::L) {
      for (int v = 0; v < full; ++v) V::fma(V::load(b + v * V::L), vb, V::load(a + v * V::L) * va).store(to + v * V::L);
      if (full < vectors)
        V::fma(V::load(b + full * V::L, tail), vb, V::load(a + full * V::L, tail) * va).store(to + full * V::L);
    }
  }

  template <class From>
  static void copy_pixels(const From* a, int64_t step, int64_t pixels, int vectors, int tail, A* to) {
    const int full = tail == V::L ? vectors : vectors - 1;
    for (int64_t x = 0; x < pixels; ++x, a += step, to += vectors * V::L) {
      for (int v = 0; v < full; ++v) V::load(a + v * V::L).store(to + v * V::L);
      if (full < vectors) V::load(a + full * V::L, tail).store(to + full * V::L);
    }
  }

  // The row of smaller input u that output row y interpolates horizontally, panel p: [pixel][channel].
  const A* blended(int u, int64_t n, const Source<A>& s, int64_t p, Work& work) const {
    const int j = roles_.up[u];
    const Image& x = q_.input[j];
    const int64_t width = panels_.width(p) * V::L;
    A* to = work.up[u].blended;
    if (q_.weight[j].data) {
      const A* a = low(u, n, s.i0, work) + panels_.start(p) * x.w;
      if (s.w1 == A(0)) return a;
      const A* b = low(u, n, s.i1, work) + panels_.start(p) * x.w;
      blend_pixels(a, width, b, width, s.w0, s.w1, x.w, panels_.width(p), V::L, to);
      return to;
    }
    const Row<T>* rows = work.up[u].direct;
    const int64_t c = panels_.start(p);
    if (s.w1 == A(0))
      copy_pixels(rows[0].p + c, rows[0].step, x.w, panels_.width(p), panels_.tail(p), to);
    else
      blend_pixels(rows[0].p + c, rows[0].step, rows[1].p + c, rows[1].step, s.w0, s.w1, x.w, panels_.width(p),
                   panels_.tail(p), to);
    return to;
  }

  static void rows_body(int64_t begin, int64_t end, void* context) {
    const ChannelsLast& self = *static_cast<ChannelsLast*>(context);
    Work work = self.thread_work();
    for (int64_t r = begin; r < end; ++r) self.output_row(r / self.q_.output.h, r % self.q_.output.h, work);
  }

  void output_row(int64_t n, int64_t y, Work& work) const {
    Row<T> identity[kMaxInputs];
    for (int i = 0; i < roles_.identities; ++i)
      identity[i] = pixel_row(q_.input[roles_.identity[i]], n, y, work.identity[roles_.identity[i]]);
    Source<A> source[kMaxInputs];
    for (int u = 0; u < roles_.ups; ++u) {
      const int j = roles_.up[u];
      const Image& x = q_.input[j];
      source[u] = source_of<A>(q_.mode, y, x.h, q_.output.h);
      if (q_.weight[j].data) continue;
      work.up[u].direct[0] = pixel_row(x, n, source[u].i0, work.identity[j]);
      if (source[u].w1 != A(0)) work.up[u].direct[1] = pixel_row(x, n, source[u].i1, work.identity[j] + x.w * x.c);
    }
    Row<Operand> base[kMaxInputs];
    for (int b = 0; b < roles_.bases; ++b) {
      base[b] = operand_row(roles_.base[b], n, y, work);
      // the gather buffer is one for all inputs: a row that lies in it is moved to the input's own
      if (!kWiden && static_cast<const void*>(base[b].p) == work.gathered) {
        const Image& x = q_.input[roles_.base[b]];
        std::memcpy(work.operand[roles_.base[b]], base[b].p, x.w * x.c * sizeof(T));
        base[b].p = work.operand[roles_.base[b]];
      }
    }
    T* out = static_cast<T*>(const_cast<void*>(q_.output.data)) + n * q_.output.sn + y * q_.output.sh;
    for (int64_t p = 0; p < panels_.count; ++p) {
      for (int b = 0; b < roles_.bases; ++b) {
        const int j = roles_.base[b];
        P::panel(base[b].p, base[b].step, q_.output.w, q_.input[j].c, packed_[j], panels_, p, work.base, b > 0);
      }
      const A* ups[kMaxInputs];
      for (int u = 0; u < roles_.ups; ++u) ups[u] = blended(u, n, source[u], p, work);
      const int64_t c = panels_.start(p);
      if (q_.projection.data)  // padded channels are written too, as zeros: the product reads them
        combine_any(p, V::L, ups, identity, work, work.wide + c, round_up(panels_.padded(), P::kStepChannels));
      else
        combine_any(p, panels_.tail(p), ups, identity, work, out + c, q_.output.sw);
    }
    if (q_.projection.data) project(out, work);
    if constexpr (P::kTails) with_tail([&](auto t) { tail_row<t>(n, source, identity, work, out); });
  }

  // The tail channels of an output row.
  template <int N>
  void tail_row(int64_t n, const Source<A>* source, const Row<T>* identity, Work& work, T* out) const {
    CombineRow<T, T, A> row{};
    const int64_t c = panels_.channels;
    for (int u = 0; u < roles_.ups; ++u) {
      const Image& x = q_.input[roles_.up[u]];
      const A *a = low(u, n, source[u].i0, work) + c * x.w, *b = low(u, n, source[u].i1, work) + c * x.w;
      blend_pixels(a, V::L, b, V::L, source[u].w0, source[u].w1, ceil_div(x.w * N, V::L), 1, V::L, work.up[u].blended);
      row.up[u] = source[u].w1 == A(0) ? a : work.up[u].blended;
    }
    row.bias = bias_ + c;
    row.taps = taps_;
    row.ups = roles_.ups;
    row.identities = roles_.identities;
    for (int i = 0; i < roles_.identities; ++i) row.identity[i] = {identity[i].p + c, identity[i].step};
    row.out = out + c;
    row.step = q_.output.sw;
    row.pixels = q_.output.w;
    row.relu = q_.relu;
    switch (roles_.ups) {
      case 1: return combine_tail<V, 1, N>(row);
      case 2: return combine_tail<V, 2, N>(row);
      default: return combine_tail<V, 3, N>(row);
    }
  }

  template <class Out>
  void combine_any(int64_t p, int store_tail, const A* const* ups, const Row<T>* identity, const Work& work, Out* out,
                   int64_t step) const {
    const int64_t c = panels_.start(p);
    CombineRow<T, Out, A> row;
    row.bias = bias_ + c;
    row.base = roles_.bases ? work.base : nullptr;
    row.taps = taps_;
    row.ups = roles_.ups;
    for (int u = 0; u < roles_.ups; ++u) row.up[u] = ups[u];
    row.identities = roles_.identities;
    for (int i = 0; i < roles_.identities; ++i) row.identity[i] = {identity[i].p + c, identity[i].step};
    row.out = out;
    row.step = step;
    row.pixels = q_.output.w;
    row.load_tail = panels_.tail(p);
    row.store_tail = store_tail;
    row.relu = q_.relu;
    combine<V>(panels_.width(p), q_.mode != Mode::kNearest, row);
  }

  void project(T* out, Work& work) const {
    const int64_t pixels = q_.output.w, wide = round_up(panels_.padded(), P::kStepChannels);
    for (int64_t p = 0; p < projected_.count; ++p) {
      P::panel(work.wide, wide, pixels, q_.channels, packed_projection_, projected_, p, work.projected, false);
      const int vectors = projected_.width(p), tail = projected_.tail(p);
      const int64_t c = projected_.start(p);
      const A* from = work.projected;
      for (int64_t x = 0; x < pixels; ++x)
        for (int v = 0; v < vectors; ++v, from += V::L) {
          const V y = V::load(from) + V::load(projection_bias_ + c + v * V::L);
          T* to = out + x * q_.output.sw + c + v * V::L;
          v == vectors - 1 && tail < V::L ? y.store(to, tail) : y.store(to);
        }
    }
    if constexpr (P::kTails) {
      if (projected_tail_) project_tail(out + projected_.channels, wide, work);
    }
  }

  void project_tail(T* out, int64_t wide, Work& work) const {
    const A* bias = projection_bias_ + projected_.channels;
    tail_products<V, kTailOutputs>(work.wide, wide, q_.output.w, q_.channels, packed_projection_tail_, work.projected);
    for (int64_t x = 0; x < q_.output.w; ++x)
      for (int t = 0; t < projected_tail_; ++t)
        out[x * q_.output.sw + t] = Convert<T>::narrow(work.projected[x * kTailOutputs + t] + bias[t]);
  }
};
