// Bilinear interpolation of class scores and their argmax in one pass: the scores are never written at full size.
// Included inside the namespace of one instruction set.
//
// Every thread keeps the two source rows of its output rows as planes [class][pixel] in the accumulator's type,
// whatever the layout of the input. For an output row it blends the two, which lies in the first-level cache then, and
// goes along the row with the best value and its class in registers: pixels are the lanes.
//
// All classes of a pixel go through the same instructions, so that equal scores stay equal and the first class wins.
// NaN counts as the largest value, as in torch.argmax; rows of finite scores, almost all, are spared the comparison.
template <class V, class T>
class InterpolateArgmax {
  using A = typename V::A;
  // Output pixels at once: their chains of comparisons do not wait for each other.
  static constexpr int kVectors = 2;

  struct Work {
    A* row[2];     // [class][pixel]; by parity of the source row
    A* blended;    // [class][pixel]
    A* label;      // [output pixel]
    int64_t held[2];
  };
  enum class Columns { kCopied, kShuffled, kScattered };

 public:
  static void run(const ArgmaxProblem& q) { InterpolateArgmax(q).run(); }

 private:
  const ArgmaxProblem& q_;
  const Image& x_;
  const int64_t stride_, padded_;  // of a plane's row, of the output's; whole vectors
  Columns columns_ = Columns::kShuffled;
  int64_t* first_;       // of each vector of output pixels: the source pixel that its indices count from
  int32_t *i0_, *i1_;    // per output pixel, from there
  A *w0_, *w1_;

  explicit InterpolateArgmax(const ArgmaxProblem& q)
      : q_(q), x_(q.scores), stride_(round_up(q.scores.w, V::L) + V::L), padded_(round_up(q.w, kVectors * V::L)) {}

  void run() {
    Arena measure(nullptr);
    lay_out(measure);
    Arena arena(scratch(0, measure.used()));
    lay_out(arena);
    fill_tables();
    parallel_for(
        x_.n * q_.h, 1 + (1 << 14) / largest(1, padded_ * x_.c),
        [](int64_t begin, int64_t end, void* context) {
          static_cast<const InterpolateArgmax*>(context)->rows(begin, end);
        },
        this);
  }

  void lay_out(Arena& arena) {
    first_ = arena.take<int64_t>(padded_ / V::L);
    i0_ = arena.take<int32_t>(padded_), i1_ = arena.take<int32_t>(padded_);
    w0_ = arena.take<A>(padded_), w1_ = arena.take<A>(padded_);
  }

  void fill_tables() {
    for (int64_t x = 0; x < padded_; ++x) {
      const int64_t inside = x < q_.w ? x : q_.w - 1;
      const Source<A> s = source_of<A>(q_.mode, inside, x_.w, q_.w);
      int64_t& first = first_[x / V::L];
      if (x % V::L == 0) first = s.i0;
      i0_[x] = static_cast<int32_t>(s.i0 - first), i1_[x] = static_cast<int32_t>(s.i1 - first);
      w0_[x] = s.w0, w1_[x] = s.w1;
      // An enlargement: L outputs lie between L + 1 neighbours, each pixel between one and the next.
      const bool to_next = s.i1 == s.i0 + 1 || s.i0 + 1 == x_.w;
      if (i0_[x] >= V::L || !to_next) columns_ = Columns::kScattered;
    }
    if (x_.h == q_.h && x_.w == q_.w) columns_ = Columns::kCopied;
  }

  void rows(int64_t begin, int64_t end) const {
    Work work;
    Arena measured(nullptr);
    lay_out(work, measured);
    Arena arena(scratch(1, measured.used()));
    lay_out(work, arena);
    work.held[0] = work.held[1] = -1;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t n = r / q_.h, y = r % q_.h;
      const Source<A> s = source_of<A>(q_.mode, y, x_.h, q_.h);
      const A* row0 = source_row(work, n, s.i0);
      const A* row1 = source_row(work, n, s.i1);
      const bool finite = blend(row0, row1, s, work.blended);
      finite ? all_pixels<false>(work) : all_pixels<true>(work);
      switch (q_.label) {
        case Label::kUInt8: store(work.label, static_cast<uint8_t*>(q_.out) + r * q_.w); break;
        case Label::kInt32: store(work.label, static_cast<int32_t*>(q_.out) + r * q_.w); break;
        case Label::kInt64: store(work.label, static_cast<int64_t*>(q_.out) + r * q_.w); break;
      }
    }
  }

  void lay_out(Work& work, Arena& arena) const {
    for (A*& row : work.row) row = arena.take<A>(x_.c * stride_);
    work.blended = arena.take<A>(x_.c * stride_);
    work.label = arena.take<A>(padded_);
  }

  template <class I>
  void store(const A* label, I* out) const {
    for (int64_t x = 0; x < q_.w; ++x) out[x] = static_cast<I>(label[x]);
  }

  const A* source_row(Work& work, int64_t n, int64_t y) const {
    const int slot = static_cast<int>(y & 1);  // the two rows of a pixel are neighbours
    A* to = work.row[slot];
    if (work.held[slot] == n * x_.h + y) return to;
    work.held[slot] = n * x_.h + y;
    const T* p = static_cast<const T*>(x_.data) + n * x_.sn + y * x_.sh;
    if (x_.sw == 1 || x_.w == 1) {
      for (int64_t c = 0; c < x_.c; ++c)
        for (int64_t x = 0; x < x_.w; x += V::L) {
          const T* from = p + c * x_.sc + x;
          (x + V::L <= x_.w ? V::load(from) : V::load(from, lanes(x_.w - x))).store(to + c * stride_ + x);
        }
    } else if (V::kTransposes && x_.sc == 1) {
      transpose(p, to);
    } else {
      for (int64_t x = 0; x < x_.w; ++x)
        for (int64_t c = 0; c < x_.c; ++c) to[c * stride_ + x] = Convert<T>::wide(p[x * x_.sw + c * x_.sc]);
      for (int64_t c = 0; c < x_.c; ++c)
        for (int64_t x = x_.w; x < stride_; ++x) to[c * stride_ + x] = A(0);
    }
    return to;
  }

  static int lanes(int64_t rest) { return static_cast<int>(rest < V::L ? rest : V::L); }

  void transpose(const T* p, A* to) const {
    if constexpr (V::kTransposes) {
      for (int64_t x = 0; x < x_.w; x += V::L)
        for (int64_t c = 0; c < x_.c; c += V::L) {
          const int count = lanes(x_.c - c);
          V block[V::L];
          for (int i = 0; i < V::L; ++i) {
            const T* from = p + (x + i) * x_.sw + c;
            block[i] = x + i >= x_.w ? V::zero() : count == V::L ? V::load(from) : V::load(from, count);
          }
          V::transpose(block);
          for (int j = 0; j < count; ++j) block[j].store(to + (c + j) * stride_ + x);
        }
    }
  }

  // Whether all values are finite: then they stay so between two pixels, and nothing is NaN.
  bool blend(const A* row0, const A* row1, const Source<A>& s, A* to) const {
    const V v0 = V::set1(s.w0), v1 = V::set1(s.w1);
    V zero = V::zero();  // times Inf or NaN it is NaN
    for (int64_t c = 0; c < x_.c; ++c) {
      A* out = to + c * stride_;
      for (int64_t x = 0; x < x_.w; x += V::L) {
        V value = V::load(row0 + c * stride_ + x);
        if (columns_ != Columns::kCopied) value = V::fma(v1, V::load(row1 + c * stride_ + x), v0 * value);
        value.store(out + x);
        zero = V::fma(value, V::zero(), zero);
      }
      out[x_.w] = out[x_.w - 1];  // the neighbour of the last pixel is the pixel itself
    }
    A lane[V::L];
    zero.store(lane);
    for (const A value : lane)
      if (!(value == A(0))) return false;
    return true;
  }

  template <bool kNaN>
  void all_pixels(Work& work) const {
    switch (columns_) {
      case Columns::kCopied: return pixels<kNaN, Columns::kCopied>(work);
      case Columns::kShuffled: return pixels<kNaN, Columns::kShuffled>(work);
      case Columns::kScattered: return pixels<kNaN, Columns::kScattered>(work);
    }
  }

  template <bool kNaN, Columns columns>
  void pixels(Work& work) const {
    for (int64_t x = 0; x < padded_; x += kVectors * V::L) {
      V best[kVectors], label[kVectors];
      const A* from[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        best[v] = V::set1(-__builtin_inff()), label[v] = V::zero();
        from[v] = work.blended + first_[x / V::L + v];
      }
      for (int64_t c = 0; c < x_.c; ++c) {
        const V number = V::set1(static_cast<A>(c));
        for (int v = 0; v < kVectors; ++v) {
          const V value = interpolated<columns>(from[v] + c * stride_, x + v * V::L);
          V::template keep_larger<kNaN>(best[v], label[v], value, number);
        }
      }
      for (int v = 0; v < kVectors; ++v) label[v].store(work.label + x + v * V::L);
    }
  }

  template <Columns columns>
  V interpolated(const A* from, int64_t x) const {
    if constexpr (columns == Columns::kCopied) return V::load(from);
    V left, right;
    if constexpr (columns == Columns::kShuffled) {
      left = V::shuffle(from, i0_ + x), right = V::shuffle(from + 1, i0_ + x);
    } else {
      A values[2][V::L];
      for (int i = 0; i < V::L; ++i) values[0][i] = from[i0_[x + i]], values[1][i] = from[i1_[x + i]];
      left = V::load(values[0]), right = V::load(values[1]);
    }
    return V::fma(V::load(w1_ + x), right, V::load(w0_ + x) * left);
  }
};
