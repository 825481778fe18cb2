// Where an output row or column comes from, how channels are cut into panels, and how a row of an image is reached.
// Included inside the namespace of one instruction set.

#include "../source.h"

// Nearest in float whatever the dtype, as in torch (for float64 torch itself picks other pixels at some sizes when the
// tensor is not channels-last), bilinear in double for float64.
template <class A>
static Source<A> source_of(Mode mode, int64_t out, int64_t in_size, int64_t out_size) {
  if (in_size == out_size) return {out, out, A(1), A(0)};
  if (mode == Mode::kNearest) {
    const Source<float> s = source_at(mode, out, source_scale<float>(mode, in_size, out_size), in_size);
    return {s.i0, s.i1, A(1), A(0)};
  }
  return source_at(mode, out, source_scale<A>(mode, in_size, out_size), in_size);
}

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static inline int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

// Channels cut into panels of at most V::PV vectors, as even as can be: a register tile is one panel wide.
template <class V>
struct Panels {
  int64_t channels, vectors, count;
  explicit Panels(int64_t c) : channels(c), vectors(ceil_div(c, V::L)), count(ceil_div(vectors, V::PV)) {}
  int64_t padded() const { return vectors * V::L; }
  int width(int64_t p) const { return static_cast<int>(vectors / count + (p < vectors % count ? 1 : 0)); }  // vectors
  int64_t start(int64_t p) const {  // first channel
    const int64_t extra = vectors % count;
    return (p * (vectors / count) + (p < extra ? p : extra)) * V::L;
  }
  // lanes in use of the last vector of panel p
  int tail(int64_t p) const {
    const int64_t rest = channels - start(p) - (width(p) - 1) * V::L;
    return static_cast<int>(rest < V::L ? rest : V::L);
  }
};

// Hands out pieces of one buffer. A first pass over a null base only measures.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(base_ + used_);
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64) + 64;
    return p;
  }
  int64_t used() const { return used_; }
  bool real() const { return base_ != nullptr; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// A row of an image in the layout of the kernel: pixels (channels-last) or channels (planar) lie `step` elements apart,
// the other dimension is dense.
template <class T>
struct Row {
  const T* p;
  int64_t step;
};

// Rows in another layout than the kernel's are gathered, one row at a time; `buffer` holds w * c elements then.
template <class T>
static Row<T> pixel_row(const Image& x, int64_t n, int64_t y, T* buffer) {
  const T* p = static_cast<const T*>(x.data) + n * x.sn + y * x.sh;
  if (x.sc == 1 || x.c == 1) return {p, x.sw};
  for (int64_t c = 0; c < x.c; ++c)
    for (int64_t w = 0; w < x.w; ++w) buffer[w * x.c + c] = p[w * x.sw + c * x.sc];
  return {buffer, x.c};
}

template <class T>
static Row<T> channel_row(const Image& x, int64_t n, int64_t y, T* buffer) {
  const T* p = static_cast<const T*>(x.data) + n * x.sn + y * x.sh;
  if (x.sw == 1 || x.w == 1) return {p, x.sc};
  for (int64_t w = 0; w < x.w; ++w)
    for (int64_t c = 0; c < x.c; ++c) buffer[c * x.w + w] = p[w * x.sw + c * x.sc];
  return {buffer, x.w};
}

// Inputs sorted by what they need.
struct Roles {
  int base[kMaxInputs], identity[kMaxInputs], up[kMaxInputs];  // same size with and without a weight; smaller
  int bases = 0, identities = 0, ups = 0;
  explicit Roles(const Problem& q) {
    for (int j = 0; j < q.count; ++j) {
      const bool same = q.input[j].h == q.output.h && q.input[j].w == q.output.w;
      if (!same)
        up[ups++] = j;
      else if (q.weight[j].data != nullptr)
        base[bases++] = j;
      else
        identity[identities++] = j;
    }
  }
};

template <class T, class A>
static void widen_bias(const Vector& bias, int64_t padded, A* to) {
  for (int64_t i = 0; i < padded; ++i)
    to[i] = i < bias.size ? Convert<T>::wide(static_cast<const T*>(bias.data)[i * bias.stride]) : A(0);
}

// Every thread makes the low-resolution rows that its output rows touch, the two at its border again. With few rows a
// thread that repeats too much work: then all rows are made first, by all threads, into one buffer.
static bool share_low_rows(const Problem& q, const Roles& roles, int64_t bytes) {
  const int threads = num_threads();
  if (threads == 1 || bytes > (64 << 20)) return false;
  double useful = 0, repeated = 0;
  for (int u = 0; u < roles.ups; ++u) {
    const Image& x = q.input[roles.up[u]];
    if (q.weight[roles.up[u]].data == nullptr) continue;
    const double row = static_cast<double>(x.w) * x.c;
    useful += row * x.n * x.h;
    repeated += row * 2 * threads;
  }
  return repeated > 0.25 * useful;
}
