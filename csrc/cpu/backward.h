// The transpose of "upsample, add, ReLU" for the inputs without weights: each low-resolution pixel gathers what it
// gave. Included inside the namespace of one instruction set.
//
// One pass over the incoming gradient serves all inputs. Its rows are masked by the ReLU, then added with the vertical
// weights into the (at most two) open rows of every input; a row that will get nothing more is stored, rounded once.
// Channels-last rows are summed up horizontally before that, while they are in the first-level cache and with channels
// as lanes; planar ones after it, with columns as lanes. Every sum runs in the order of the output's rows and columns,
// whoever computes it, so that the bits never depend on the number of threads.
template <class V, class T>
class Backward {
  using A = typename V::A;

 public:
  static void run(const BackwardProblem& q) {
    Backward self(q);
    Arena measured(nullptr);
    self.prepare(measured);
    Arena arena(scratch(1, measured.used()));
    self.prepare(arena);
    parallel_for(
        self.planes_ * self.bands_, 1,
        [](int64_t begin, int64_t end, void* context) {
          for (int64_t task = begin; task < end; ++task) static_cast<const Backward*>(context)->band(task);
        },
        &self);
  }

 private:
  struct Window {  // the output's columns that a column of an input reaches
    int64_t begin, count;
    const A* weights;
  };
  struct Input {
    const Source<A>* rows;   // [output row]
    const Window* columns;   // [column]
  };
  struct Open {  // the rows of one input that a task owns, and those that are being added up
    int64_t begin, end, first, last;  // own rows; output rows [first, last) that reach them
    int64_t row[2];                   // by parity; -1: none
    A* sum[2];
  };

  explicit Backward(const BackwardProblem& q)
      : q_(q),
        pixel_(q.channels_last ? q.c : 1),
        across_first_(q.channels_last && q.c > 1),
        planes_(q.channels_last ? q.n : q.n * q.c),
        row_(q.w * pixel_) {
    // Tasks at the same image repeat each other's rows at their border: no more of them than threads.
    const int64_t wanted = ceil_div(num_threads(), planes_ > 0 ? planes_ : 1);
    bands_ = wanted < q.h ? wanted : q.h;
  }

  void prepare(Arena& arena) {
    for (int j = 0; j < q_.count; ++j) {
      const int64_t low_h = q_.low[j].h, low_w = q_.low[j].w;
      Source<A>* rows = arena.take<Source<A>>(q_.h);
      Window* columns = arena.take<Window>(low_w);
      A* weights = arena.take<A>(2 * q_.w);
      input_[j] = {rows, columns};
      if (!arena.real()) continue;
      for (int64_t y = 0; y < q_.h; ++y) rows[y] = source_of<A>(q_.mode, y, low_h, q_.h);
      int64_t from = 0;  // the first column of the output that reaches as far as x
      for (int64_t x = 0; x < low_w; ++x) {
        columns[x] = {from, 0, weights};
        for (int64_t o = from; o < q_.w; ++o) {
          const Source<A> s = source_of<A>(q_.mode, o, low_w, q_.w);
          if (s.i0 > x) break;
          if (s.i1 < x) {
            columns[x].begin = ++from;
            continue;
          }
          *weights++ = (s.i0 == x ? s.w0 : A(0)) + (s.i1 == x ? s.w1 : A(0));
          ++columns[x].count;
        }
      }
    }
  }

  void band(int64_t task) const {
    const int64_t plane = task / bands_, b = task % bands_;
    int64_t begin = q_.h * b / bands_, end = q_.h * (b + 1) / bands_;
    const int64_t own_begin = begin, own_end = end;
    Arena measured(nullptr), *arena = &measured;
    Open open[kMaxInputs];
    A *masked = nullptr, *across = nullptr;
    Arena real(nullptr);
    for (int pass = 0; pass < 2; ++pass) {
      masked = arena->template take<A>(row_);
      across = arena->template take<A>(across_first_ ? row_ : 0);
      for (int j = 0; j < q_.count; ++j)
        for (A*& sum : open[j].sum) sum = arena->template take<A>(length(j));
      if (pass == 0) real = Arena(scratch(0, measured.used())), arena = &real;
    }
    for (int j = 0; j < q_.count; ++j) {
      Open& o = open[j];
      o.begin = q_.low[j].h * b / bands_, o.end = q_.low[j].h * (b + 1) / bands_;
      o.row[0] = o.row[1] = -1;
      o.first = 0;
      while (o.first < q_.h && input_[j].rows[o.first].i1 < o.begin) ++o.first;
      o.last = o.first;
      while (o.last < q_.h && input_[j].rows[o.last].i0 < o.end) ++o.last;
      if (o.begin == o.end) continue;
      begin = o.first < begin ? o.first : begin;
      end = o.last > end ? o.last : end;
    }

    for (int64_t y = begin; y < end; ++y) {
      const A* g = masked_row(plane, y, y >= own_begin && y < own_end, masked);
      for (int j = 0; j < q_.count; ++j) {
        if (y < open[j].first || y >= open[j].last) continue;
        const Source<A>& s = input_[j].rows[y];
        const A* h = across_first_ ? across_row(j, g, across) : g;
        if (s.i0 == s.i1) {
          add(plane, j, open[j], s.i0, s.w0 + s.w1, h);
        } else {
          add(plane, j, open[j], s.i0, s.w0, h);
          if (s.w1 != A(0)) add(plane, j, open[j], s.i1, s.w1, h);
        }
      }
    }
    for (int j = 0; j < q_.count; ++j)
      for (int k = 0; k < 2; ++k)
        if (open[j].row[k] >= 0) finish(plane, j, open[j].row[k], open[j].sum[k]);
  }

  // A row of the gradient where the ReLU let it through, widened; kept for the same-size inputs where it is the task's
  // own.
  const A* masked_row(int64_t plane, int64_t y, bool own, A* buffer) const {
    const int64_t at = (plane * q_.h + y) * row_;
    const T* g = static_cast<const T*>(q_.grad) + at;
    if (q_.output == nullptr) {
      if constexpr (std::is_same<T, A>::value) return g;
      for (int64_t i = 0; i < row_; i += V::L) {
        const int n = lanes(row_ - i);
        n == V::L ? V::load(g + i).store(buffer + i) : V::load(g + i, n).store(buffer + i, n);
      }
      return buffer;
    }
    const T* out = static_cast<const T*>(q_.output) + at;
    T* same = own && q_.same != nullptr ? static_cast<T*>(q_.same) + at : nullptr;
    for (int64_t i = 0; i < row_; i += V::L) {
      const int n = lanes(row_ - i);
      if (n == V::L) {
        const V m = V::where_positive(V::load(out + i), V::load(g + i));
        m.store(buffer + i);
        if (same) m.store(same + i);
      } else {
        const V m = V::where_positive(V::load(out + i, n), V::load(g + i, n));
        m.store(buffer + i, n);
        if (same) m.store(same + i, n);
      }
    }
    return buffer;
  }

  static int lanes(int64_t rest) { return static_cast<int>(rest < V::L ? rest : V::L); }

  // Elements of a row of sums of input j.
  int64_t length(int j) const { return across_first_ ? q_.low[j].w * pixel_ : row_; }

  const A* across_row(int j, const A* g, A* to) const {
    A* out = to;
    for (int64_t x = 0; x < q_.low[j].w; ++x, out += pixel_) {
      const Window& window = input_[j].columns[x];
      const A* from = g + window.begin * pixel_;
      int64_t c = 0;
      for (; c + 3 * V::L <= pixel_; c += 3 * V::L) gather<3>(window, from + c, out + c, V::L);
      for (; c + V::L < pixel_; c += 2 * V::L) gather<2>(window, from + c, out + c, lanes(pixel_ - c - V::L));
      if (c < pixel_) gather<1>(window, from + c, out + c, lanes(pixel_ - c));
    }
    return to;
  }

  void add(int64_t plane, int j, Open& o, int64_t r, A weight, const A* g) const {
    if (r < o.begin || r >= o.end) return;
    const int k = static_cast<int>(r & 1);
    A* sum = o.sum[k];
    const V w = V::set1(weight);
    const int64_t count = length(j);
    int64_t i = 0;
    if (o.row[k] != r) {
      if (o.row[k] >= 0) finish(plane, j, o.row[k], sum);
      o.row[k] = r;
      for (; i + V::L <= count; i += V::L) (w * V::load(g + i)).store(sum + i);
      if (i < count) (w * V::load(g + i, lanes(count - i))).store(sum + i, lanes(count - i));
      return;
    }
    for (; i + V::L <= count; i += V::L) V::fma(w, V::load(g + i), V::load(sum + i)).store(sum + i);
    if (i < count) {
      const int n = lanes(count - i);
      V::fma(w, V::load(g + i, n), V::load(sum + i, n)).store(sum + i, n);
    }
  }

  void finish(int64_t plane, int j, int64_t r, const A* sum) const {
    const int64_t width = q_.low[j].w, count = width * pixel_;
    T* out = static_cast<T*>(q_.low[j].data) + (plane * q_.low[j].h + r) * count;
    if (across_first_) {
      int64_t i = 0;
      for (; i + V::L <= count; i += V::L) V::load(sum + i).store(out + i);
      if (i < count) V::load(sum + i, lanes(count - i)).store(out + i, lanes(count - i));
      return;
    }
    for (int64_t x = 0; x < width; ++x) {
      const Window& window = input_[j].columns[x];
      A total = 0;
      for (int64_t t = 0; t < window.count; ++t) total += window.weights[t] * sum[window.begin + t];
      out[x] = Convert<T>::narrow(total);
    }
  }

  template <int NV>
  void gather(const Window& window, const A* from, A* out, int tail) const {
    V acc[NV];
    for (int v = 0; v < NV; ++v) acc[v] = V::zero();
    for (int64_t t = 0; t < window.count; ++t, from += pixel_) {
      const V w = V::set1(window.weights[t]);
      for (int v = 0; v < NV - 1; ++v) acc[v] = V::fma(w, V::load(from + v * V::L), acc[v]);
      const A* last = from + (NV - 1) * V::L;
      acc[NV - 1] = V::fma(w, tail == V::L ? V::load(last) : V::load(last, tail), acc[NV - 1]);
    }
    for (int v = 0; v < NV - 1; ++v) acc[v].store(out + v * V::L);
    tail == V::L ? acc[NV - 1].store(out + (NV - 1) * V::L) : acc[NV - 1].store(out + (NV - 1) * V::L, tail);
  }

  const BackwardProblem& q_;
  Input input_[kMaxInputs];
  int64_t pixel_;
  bool across_first_;
  int64_t planes_, row_, bands_ = 1;
};
