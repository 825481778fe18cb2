// Convolutions of any odd kernel and stride 1 or 2, output pixels in the lanes. Included inside the namespace of one
// instruction set.
//
// A task computes some rows of the output. It first copies what they read of the input, in float32 and with a border
// around the image (zeros, or what becomes zero when the image is normalized), into a panel that stays in the second
// cache; with stride 2 odd and even rows and columns go to planes of their own (phases), so that the outputs of a
// register read neighbours. Then registers of six channels by some registers of pixels go through all taps and input
// channels.

//
// With PAIRS an element of the panel holds two bfloat16 channels, and an instruction multiplies both.

template <class Q, bool PAIRS = false>
class Direct {
  using V = typename Q::V;
  static constexpr int64_t L = Q::L;
  static constexpr int kMost = Q::kWide;  // registers of pixels at once
  // Planes lie far apart, and the hardware looks ahead only in one: the next ones are asked for while one is copied.
  static constexpr int64_t kAhead = 4;

 public:
  // A 1x1 convolution of stride 1 knows no rows: its planes are one long row.
  static int64_t height(const Convolution& q) { return flat(q) ? 1 : q.h_out; }
  static int64_t width(const Convolution& q) { return flat(q) ? q.h_out * q.w_out : q.w_out; }
  static bool flat(const Convolution& q) { return q.kernel == 1 && q.stride == 1; }

  // Rows and columns first .. last - 1 of an image, output channels of the blocks from .. to - 1.
  static void run(const Convolution& q, int64_t image, int64_t y0, int64_t y1, int64_t x0, int64_t x1, int64_t from,
                  int64_t to) {
    Direct(q, image, y0, y1, x0, x1).channels(from, to);
  }
  // Bytes of the panel of a task of so many rows and columns.
  static int64_t panel_bytes(const Convolution& q, int64_t rows, int64_t columns) {
    const int64_t reach = (q.kernel - 1) / q.stride;
    const int64_t channel = q.stride * q.stride * (rows + reach) * (columns + reach) + L;
    return depth(q) * channel * static_cast<int64_t>(sizeof(float));
  }

 private:
  static int64_t depth(const Convolution& q) { return PAIRS ? ceil_div(q.c_in, 2) : q.c_in; }  // of the panel
  const Convolution& q_;
  const int64_t image_, y0_, x0_, rows_, columns_, h_, w_;
  const int64_t pitch_, phase_, channel_;  // elements of the panel from row to row, plane to plane, channel to channel
  float* panel_;

  Direct(const Convolution& q, int64_t image, int64_t y0, int64_t y1, int64_t x0, int64_t x1)
      : q_(q),
        image_(image),
        y0_(y0),
        x0_(x0),
        rows_(y1 - y0),
        columns_(x1 - x0),
        h_(flat(q) ? 1 : q.h),
        w_(flat(q) ? q.h * q.w : q.w),
        pitch_(columns_ + (q.kernel - 1) / q.stride),
        phase_(pitch_ * (rows_ + (q.kernel - 1) / q.stride)),
        channel_(phase_ * q.stride * q.stride + L) {
    panel_ = static_cast<float*>(scratch(0, (depth(q) * channel_ + 4 * L) * sizeof(float)));
    float* to = panel_;
    const float* border = q.border;
    for (int s = 0; s < q.sources; ++s) {
      const Planes& source = q.source[s];
      with_type(source.dtype, [&](auto* type) {
        const auto* from = static_cast<decltype(type)>(const_cast<void*>(source.data));
        to = copy_source(from + image * source.image_stride, source.channels, border, to);
      });
      if (border != nullptr) border += source.channels;
    }
  }

  template <class T>
  float* copy_source(const T* from, int64_t channels, const float* border, float* to) const {
    constexpr int64_t step = PAIRS ? 2 : 1;
    for (int64_t c = 0; c < channels; c += step, from += step * h_ * w_, to += channel_) {
      const T* second = PAIRS && c + 1 < channels ? from + h_ * w_ : nullptr;
      copy(Pair<T>{from, second, border == nullptr ? 0.f : border[c]}, to);
    }
    return to;
  }
  template <class T>
  struct Pair {  // a plane, or with PAIRS two, or a row of them; the second may be missing
    const T *first, *second;
    float border;  // what lies around it
    Pair at(int64_t offset, bool inside) const {
      return {inside ? first + offset : nullptr, inside && second ? second + offset : nullptr, border};
    }
  };
  template <class T>
  void copy(const Pair<T>& plane, float* to) const {
    const int64_t pad = q_.kernel / 2, rows = phase_ / pitch_;
    for (int phase = 0; phase < q_.stride; ++phase)
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t y = q_.stride * (y0_ + r) + phase - pad;
        const Pair<T> from = plane.at(y * w_, y >= 0 && y < h_);
        float* row = to + phase * q_.stride * phase_ + r * pitch_;
        q_.stride == 1 ? copy_row(from, x0_ - pad, row) : copy_row_split(from, 2 * x0_ - pad, row, row + phase_);
      }
  }
  // Sixteen elements from column x on; without a row, and outside of it, the border.
  template <class T>
  V load(const Pair<T>& row, int64_t x) const {
    if (row.first == nullptr) return V::set1(row.border);
    const auto inside = Q::mask(-x, w_ - x);
    __builtin_prefetch(row.first + x + kAhead * h_ * w_);
    if constexpr (PAIRS) {
      if (row.second) __builtin_prefetch(row.second + x + kAhead * h_ * w_);
      return Q::load_pairs(row.first + x, row.second ? row.second + x : nullptr, inside);
    } else {
      return Q::where(inside, Q::load(row.first + x, inside), V::set1(row.border));
    }
  }
  template <class T>
  void copy_row(const Pair<T>& from, int64_t x, float* row) const {
    for (int64_t i = 0; i < pitch_; i += L, x += L) Q::store(row + i, Q::mask(0, pitch_ - i), load(from, x));
  }
  template <class T>
  void copy_row_split(const Pair<T>& from, int64_t x, float* even, float* odd) const {
    for (int64_t i = 0; i < pitch_; i += L, x += 2 * L) {
      V first, second;
      Q::deinterleave(load(from, x), load(from, x + L), first, second);
      Q::store(even + i, Q::mask(0, pitch_ - i), first);
      Q::store(odd + i, Q::mask(0, pitch_ - i), second);
    }
  }

  void channels(int64_t from, int64_t to) const {
    // of narrow images a register takes several rows as they lie in the panel, with what is between them
    const int64_t by_row = rows_ * ceil_div(columns_, L), joined = ceil_div(rows_ * pitch_, L);
    const Cover cover = {joined < by_row, ceil_div(columns_, L)};
    const int64_t count = cover.joined ? joined : by_row;
    for (int64_t block = from; block < to; ++block)
      for (int64_t i = 0; i < count; i += kMost) {
        const int64_t left = count - i;
        if constexpr (kMost > 2) {
          if (left > 3)
            pixels<4>(block, i, cover);
          else if (left == 3)
            pixels<3>(block, i, cover);
          else if (left == 2)
            pixels<2>(block, i, cover);
          else
            pixels<1>(block, i, cover);
        } else {
          if (left > 1)
            pixels<2>(block, i, cover);
          else
            pixels<1>(block, i, cover);
        }
      }
  }

  struct Cover {  // which pixels a register of outputs holds
    bool joined;
    int64_t across;  // registers of a row, where they are not joined
  };

  template <int B>
  void pixels(int64_t block, int64_t first, const Cover& cover) const {
    V sum[kChannelBlock][B];
    const float* at[B];
    for (int o = 0; o < kChannelBlock; ++o)
      for (int b = 0; b < B; ++b) sum[o][b] = V::zero();
    for (int b = 0; b < B; ++b) {
      const int64_t i = first + b;
      at[b] = panel_ + (cover.joined ? i * L : i / cover.across * pitch_ + i % cover.across * L);
    }
    const int64_t channels = depth(q_);
    const float* weight = q_.weight + block * q_.kernel * q_.kernel * channels * kChannelBlock;
    for (int ky = 0; ky < q_.kernel; ++ky)
      for (int kx = 0; kx < q_.kernel; ++kx) {
        const int s = q_.stride;
        int64_t offset = (ky % s * s + kx % s) * phase_ + ky / s * pitch_ + kx / s;
        for (int64_t c = 0; c < channels; ++c, offset += channel_, weight += kChannelBlock) {
          __builtin_prefetch(weight + kWeightsAhead);
          V in[B];
          for (int b = 0; b < B; ++b) in[b] = V::load(at[b] + offset);
          for (int o = 0; o < kChannelBlock; ++o) {
            const V factor = V::set1(weight[o]);
            for (int b = 0; b < B; ++b) sum[o][b] = multiply_add<Q, PAIRS>(factor, in[b], sum[o][b]);
          }
        }
      }
    // Only now in memory: GCC keeps no array in registers that somebody takes the address of.
    alignas(64) float sums[B][kChannelBlock * L];
    for (int b = 0; b < B; ++b)
      for (int o = 0; o < kChannelBlock; ++o) sum[o][b].store(sums[b] + o * L);
    for (int b = 0; b < B; ++b) {
      if (cover.joined) {
        const int64_t begin = (first + b) * L;
        for (int64_t row = begin / pitch_; row < rows_ && row * pitch_ < begin + L; ++row)
          store(block, row, begin - row * pitch_, sums[b]);
      } else {
        store(block, (first + b) / cover.across, (first + b) % cover.across * L, sums[b]);
      }
    }
  }

  // Lane l of a channel's sums is column x + l of a row of the task; lanes outside of it are for others.
  void store(int64_t block, int64_t row, int64_t x, const float* sums) const {
    const auto mask = Q::mask(-x, columns_ - x);
    const int64_t plane = q_.h_out * q_.w_out, channel = block * kChannelBlock;
    const int64_t at = channel * plane + (y0_ + row) * q_.w_out + x0_ + x;
    with_type(q_.output.dtype, [&](auto* type) {
      using T = decltype(type);
      T to = static_cast<T>(const_cast<void*>(q_.output.data)) + image_ * q_.output.image_stride + at;
      T residual = static_cast<T>(const_cast<void*>(q_.residual.data));
      if (residual != nullptr) residual += image_ * q_.residual.image_stride + at;
      for (int o = 0; o < kChannelBlock; ++o) {
        if (channel + o >= q_.c_out) break;
        V y = V::load(sums + o * L) + V::set1(q_.bias[channel + o]);
        if (residual != nullptr) y = y + Q::load(residual + o * plane, mask);
        if (channel + o >= q_.relu_from) y = y.relu();
        Q::store(to + o * plane, mask, y);
      }
    });
  }
};
