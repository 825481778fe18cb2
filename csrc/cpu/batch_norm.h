// BatchNorm and ReLU behind convolutions in training, channels-last. The channels are cut into segments that become
// tensors of their own, so that convolutions that ran side by side part here without a copy. Included inside the
// namespace of one instruction set.
//
// Statistics run over chunks that fit the first-level cache: a chunk's mean first, then the squares of the distances
// from it, which keeps the digits that a plain sum of squares loses. Chunks belong to a fixed number of tasks and are
// put together in a fixed order, so that the bits never depend on the number of threads.
template <class V, class T>
class BatchNorm {
  using A = typename V::A;
  static constexpr int64_t kTasks = 16;
  static constexpr int64_t kChunk = 4096;  // elements
  static constexpr int kBlock = 3;         // vectors of channels that a loop over pixels keeps in registers

 public:
  static void forward(const NormProblem& q) {
    BatchNorm self(q);
    if (q.batch) {
      self.each_chunk(&BatchNorm::moments);
      self.put_moments_together();
    }
    self.make_affine();
    self.each_chunk(&BatchNorm::normalize);
  }

  static void backward(const NormProblem& q) {
    BatchNorm self(q);
    self.make_affine();
    self.each_chunk(&BatchNorm::gradient_sums);
    self.put_gradients_together();
    self.each_chunk(&BatchNorm::input_gradient);
  }

 private:
  using Step = void (BatchNorm::*)(int64_t task, int64_t begin, int64_t end) const;
  template <int N>
  using Count = std::integral_constant<int, N>;

  explicit BatchNorm(const NormProblem& q) : q_(q), chunk_(largest(1, kChunk / q.channels)) {
    Arena measured(nullptr);
    lay_out(measured);
    Arena arena(scratch(1, measured.used()));
    lay_out(arena);
  }

  void lay_out(Arena& arena) {
    for (A*& p : partial_) p = arena.take<A>(kTasks * q_.channels);
    scale_ = arena.take<A>(q_.channels), shift_ = arena.take<A>(q_.channels);
    minus_mean_ = arena.take<A>(q_.channels), constant_ = arena.take<A>(q_.channels);
    of_grad_ = arena.take<A>(q_.channels), of_input_ = arena.take<A>(q_.channels);
  }

  int64_t first_of(int64_t task) const { return q_.pixels * task / kTasks; }

  void each_chunk(Step step) const {
    struct Context {
      const BatchNorm* self;
      Step step;
    } context{this, step};
    const int64_t size = ceil_div(q_.pixels, kTasks) * q_.channels;
    parallel_for(
        kTasks, 1 + (1 << 13) / size,
        [](int64_t begin, int64_t end, void* given) {
          const Context& k = *static_cast<Context*>(given);
          for (int64_t task = begin; task < end; ++task) {
            const int64_t last = k.self->first_of(task + 1);
            for (int64_t p = k.self->first_of(task); p < last; p += k.self->chunk_)
              (k.self->*k.step)(task, p, p + k.self->chunk_ < last ? p + k.self->chunk_ : last);
          }
        },
        &context);
  }

  // Calls f(Count<vectors>, first channel, lanes of the last vector) for all channels of [begin, begin + width).
  template <class F>
  static void each_block(int64_t begin, int64_t width, F f) {
    int64_t c = 0;
    for (; c + kBlock * V::L <= width; c += kBlock * V::L) f(Count<kBlock>(), begin + c, V::L);
    const int rest = static_cast<int>(width - c);
    if (rest > 2 * V::L) {
      f(Count<3>(), begin + c, rest - 2 * V::L);
    } else if (rest > V::L) {
      f(Count<2>(), begin + c, rest - V::L);
    } else if (rest > 0) {
      f(Count<1>(), begin + c, rest);
    }
  }

  template <class E>
  static V read(const E* p, int lanes) {
    return lanes == V::L ? V::load(p) : V::load(p, lanes);
  }
  template <class E>
  static void write(V x, E* p, int lanes) {
    lanes == V::L ? x.store(p) : x.store(p, lanes);
  }
  template <int NV, class E>
  static void read_all(V (&to)[NV], const E* p, int lanes) {
    for (int v = 0; v < NV - 1; ++v) to[v] = V::load(p + v * V::L);
    to[NV - 1] = read(p + (NV - 1) * V::L, lanes);
  }
  template <int NV, class E>
  static void write_all(const V (&from)[NV], E* p, int lanes) {
    for (int v = 0; v < NV - 1; ++v) from[v].store(p + v * V::L);
    write(from[NV - 1], p + (NV - 1) * V::L, lanes);
  }

  const T* input(int64_t pixel, int64_t c) const { return static_cast<const T*>(q_.x) + pixel * q_.channels + c; }

  // The mean of a chunk and the squares of the distances from it, added to the task's (Chan, Golub and LeVeque 1979).
  // The distances from a mean that was rounded do not add up to 0, which corrects both.
  void moments(int64_t task, int64_t begin, int64_t end) const {
    each_block(0, q_.channels, [&](auto count, int64_t c, int lanes) {
      constexpr int NV = decltype(count)::value;
      V minus_mean[NV], mean[NV], off[NV], squares[NV], x[NV];
      for (int v = 0; v < NV; ++v) mean[v] = off[v] = squares[v] = V::zero();
      for (int64_t p = begin; p < end; ++p) {
        read_all<NV>(x, input(p, c), lanes);
        for (int v = 0; v < NV; ++v) mean[v] = mean[v] + x[v];
      }
      const V per = V::set1(A(1) / A(end - begin)), minus = V::set1(A(-1));
      for (int v = 0; v < NV; ++v) minus_mean[v] = mean[v] * per * minus;
      for (int64_t p = begin; p < end; ++p) {
        read_all<NV>(x, input(p, c), lanes);
        for (int v = 0; v < NV; ++v) {
          const V d = x[v] + minus_mean[v];
          off[v] = off[v] + d;
          squares[v] = V::fma(d, d, squares[v]);
        }
      }
      for (int v = 0; v < NV; ++v) {
        const V shift = off[v] * per;
        mean[v] = V::fma(minus_mean[v], minus, shift);
        squares[v] = V::fma(off[v] * shift, minus, squares[v]);
      }
      A *means = partial_[0] + task * q_.channels + c, *sums = partial_[1] + task * q_.channels + c;
      const int64_t before = begin - first_of(task);
      if (before > 0) {
        const A share = A(end - begin) / A(end - first_of(task));
        V old_mean[NV], old[NV];
        read_all<NV>(old_mean, means, lanes);
        read_all<NV>(old, sums, lanes);
        for (int v = 0; v < NV; ++v) {
          const V d = V::fma(minus, old_mean[v], mean[v]);
          mean[v] = V::fma(d, V::set1(share), old_mean[v]);
          squares[v] = V::fma(d * d, V::set1(share * A(before)), squares[v] + old[v]);
        }
      }
      write_all<NV>(mean, means, lanes);
      write_all<NV>(squares, sums, lanes);
    });
  }

  void put_moments_together() {
    for (int64_t c = 0; c < q_.channels; ++c) {
      double mean = 0, squares = 0;
      for (int64_t t = 0; t < kTasks; ++t)
        if (const double n = double(first_of(t + 1) - first_of(t)); n > 0)
          mean += n / q_.pixels * partial_[0][t * q_.channels + c];
      for (int64_t t = 0; t < kTasks; ++t)
        if (const double n = double(first_of(t + 1) - first_of(t)); n > 0) {
          const double d = partial_[0][t * q_.channels + c] - mean;
          squares += partial_[1][t * q_.channels + c] + n * d * d;
        }
      static_cast<A*>(q_.mean)[c] = static_cast<A>(mean);
      static_cast<A*>(q_.var)[c] = static_cast<A>(squares / q_.pixels);
    }
  }

  double inverse_deviation(int64_t c) const { return 1 / std::sqrt(static_cast<const A*>(q_.var)[c] + q_.eps); }

  void make_affine() {
    for (int64_t c = 0; c < q_.channels; ++c) {
      const double mean = static_cast<const A*>(q_.mean)[c];
      const double scale = inverse_deviation(c) * static_cast<const A*>(q_.weight)[c];
      scale_[c] = static_cast<A>(scale);
      shift_[c] = static_cast<A>(static_cast<const A*>(q_.bias)[c] - mean * scale);
      minus_mean_[c] = static_cast<A>(-mean);
    }
  }

  void normalize(int64_t, int64_t begin, int64_t end) const {
    for (int s = 0; s < q_.segments; ++s) {
      const NormProblem::Segment& segment = q_.segment[s];
      each_block(segment.begin, segment.width, [&](auto count, int64_t c, int lanes) {
        constexpr int NV = decltype(count)::value;
        V scale[NV], shift[NV], x[NV];
        read_all<NV>(scale, scale_ + c, lanes);
        read_all<NV>(shift, shift_ + c, lanes);
        T* to = static_cast<T*>(segment.out) + begin * segment.width + c - segment.begin;
        for (int64_t p = begin; p < end; ++p, to += segment.width) {
          read_all<NV>(x, input(p, c), lanes);
          for (int v = 0; v < NV; ++v) {
            x[v] = V::fma(x[v], scale[v], shift[v]);
            if (segment.relu) x[v] = x[v].relu();
          }
          write_all<NV>(x, to, lanes);
        }
      });
    }
  }

  const T* gradient(const NormProblem::Segment& segment, int64_t pixel, int64_t c) const {
    return static_cast<const T*>(segment.grad) + pixel * segment.width + c - segment.begin;
  }

  // The sums of a channel's gradients, and of them times the distance from the mean.
  void gradient_sums(int64_t task, int64_t begin, int64_t end) const {
    for (int s = 0; s < q_.segments; ++s) {
      const NormProblem::Segment& segment = q_.segment[s];
      each_block(segment.begin, segment.width, [&](auto count, int64_t c, int lanes) {
        constexpr int NV = decltype(count)::value;
        V scale[NV], shift[NV], minus_mean[NV], x[NV], g[NV], sum[NV], product[NV];
        read_all<NV>(scale, scale_ + c, lanes);
        read_all<NV>(shift, shift_ + c, lanes);
        read_all<NV>(minus_mean, minus_mean_ + c, lanes);
        for (int v = 0; v < NV; ++v) sum[v] = product[v] = V::zero();
        for (int64_t p = begin; p < end; ++p) {
          read_all<NV>(x, input(p, c), lanes);
          read_all<NV>(g, gradient(segment, p, c), lanes);
          for (int v = 0; v < NV; ++v) {
            if (segment.relu) g[v] = V::where_positive(V::fma(x[v], scale[v], shift[v]), g[v]);
            sum[v] = sum[v] + g[v];
            product[v] = V::fma(g[v], x[v] + minus_mean[v], product[v]);
          }
        }
        A *sums = partial_[0] + task * q_.channels + c, *products = partial_[1] + task * q_.channels + c;
        if (begin > first_of(task)) {
          read_all<NV>(x, sums, lanes);
          read_all<NV>(g, products, lanes);
          for (int v = 0; v < NV; ++v) sum[v] = sum[v] + x[v], product[v] = product[v] + g[v];
        }
        write_all<NV>(sum, sums, lanes);
        write_all<NV>(product, products, lanes);
      });
    }
  }

  // Gradients of weight and bias; and that of the input as of_grad * g + of_input * (x - mean) + constant.
  void put_gradients_together() {
    for (int64_t c = 0; c < q_.channels; ++c) {
      double sum = 0, product = 0;
      for (int64_t t = 0; t < kTasks; ++t)
        if (first_of(t) < first_of(t + 1)) {
          sum += partial_[0][t * q_.channels + c];
          product += partial_[1][t * q_.channels + c];
        }
      const double inverse = inverse_deviation(c), scale = inverse * static_cast<const A*>(q_.weight)[c];
      static_cast<A*>(q_.d_weight)[c] = static_cast<A>(product * inverse);
      static_cast<A*>(q_.d_bias)[c] = static_cast<A>(sum);
      of_grad_[c] = static_cast<A>(scale);
      of_input_[c] = q_.batch ? static_cast<A>(-scale * inverse * inverse * product / q_.pixels) : A(0);
      constant_[c] = q_.batch ? static_cast<A>(-scale * sum / q_.pixels) : A(0);
    }
  }

  void input_gradient(int64_t, int64_t begin, int64_t end) const {
    for (int s = 0; s < q_.segments; ++s) {
      const NormProblem::Segment& segment = q_.segment[s];
      each_block(segment.begin, segment.width, [&](auto count, int64_t c, int lanes) {
        constexpr int NV = decltype(count)::value;
        V scale[NV], shift[NV], minus_mean[NV], a[NV], b[NV], k[NV], x[NV], g[NV];
        read_all<NV>(scale, scale_ + c, lanes);
        read_all<NV>(shift, shift_ + c, lanes);
        read_all<NV>(minus_mean, minus_mean_ + c, lanes);
        read_all<NV>(a, of_grad_ + c, lanes);
        read_all<NV>(b, of_input_ + c, lanes);
        read_all<NV>(k, constant_ + c, lanes);
        T* to = static_cast<T*>(q_.d_x) + begin * q_.channels + c;
        for (int64_t p = begin; p < end; ++p, to += q_.channels) {
          read_all<NV>(x, input(p, c), lanes);
          read_all<NV>(g, gradient(segment, p, c), lanes);
          for (int v = 0; v < NV; ++v) {
            if (segment.relu) g[v] = V::where_positive(V::fma(x[v], scale[v], shift[v]), g[v]);
            g[v] = V::fma(a[v], g[v], V::fma(b[v], x[v] + minus_mean[v], k[v]));
          }
          write_all<NV>(g, to, lanes);
        }
      });
    }
  }

  const NormProblem& q_;
  int64_t chunk_;  // pixels
  A* partial_[2];  // [task, channel]
  A *scale_, *shift_, *minus_mean_, *of_grad_, *of_input_, *constant_;  // [channel]
};
