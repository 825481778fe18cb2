// Convolutions as products of tiles. Included inside the namespace of one instruction set.
//
// A block of up to four tiles of pixels by up to three of output channels stays in the registers over all taps and
// sources. It is then stored into a buffer, from where vectors finish it (bias, residual, ReLU, rounding), a few pixels
// at a time between the products of the next block: tiles and vectors have units of their own.

// E: of the sources and weights, BFloat16 or uint8_t.
template <class Blocks, class V, class E>
class TiledTask {
  static constexpr bool kBytes = sizeof(E) == 1;
  enum Forms { kHigh = 1, kLow = 2, kBytesToo = 4 };  // of the output: their sum
  static constexpr int kAll = 1 << 20, kShare = 2;  // units at once, and no less
  struct Strip {  // up to sixteen output pixels, one after the other
    int64_t from;  // pixel of the sources where the first one's taps begin
    int64_t to;  // the first one's own
    uint32_t inside, border;  // which of them are pixels, and which lie behind a row and become zeros
  };
  struct Origin {  // a source, for all blocks
    const char *image, *weight;
    int64_t pixel, tile;  // bytes of a pixel, and of the weights of a tile of output channels
    int64_t row, step, bytes;  // as TileSource has them
  };
  struct Pending {  // a block on its way out: the strip that comes next, and what is left of it
    void (TiledTask::*finish)(Pending& p, int units);
    const float *sums, *bias, *scale;
    BFloat16 *high, *low;
    uint8_t* bytes;
    const BFloat16 *add_high, *add_low;
    const Strip *strip, *last;
    int units, left;  // rows or vectors: of all the block, of the strip
    int64_t channel;
  };
  const TiledConvolution& q_;
  const int64_t y0_, y1_, across_;
  bool joined_;  // strips run on over the ends of rows
  // All channels of a pixel are in one block: sums lie in the memory as the output does, whatever the channels, and
  // vectors run on over the ends of pixels.
  const bool flat_;
  int64_t strips_;
  Strip* strip_;  // all of them: every group of channels goes through them again
  Origin origin_[kMaxSources];
  int steps_ = 0;  // of the sum
  int64_t residual_base_;
  const Written out_;
  const float floor_;  // of the results
  Pending pending_;
  int side_ = 0;
  alignas(64) float buffer_[2][6 * 256 + 16], bias_[16 * 48 + 16], scale_[kBytes ? 16 * 48 + 16 : 1];

 public:
  // Rows y0 .. y1 - 1 of an image.
  TiledTask(const TiledConvolution& q, int64_t image, int64_t y0, int64_t y1)
      : q_(q),
        y0_(y0),
        y1_(y1),
        across_(ceil_div(q.out.w, 16)),
        flat_(q.c_out <= 48),
        out_(q.output, image * q.out.image(q.output.channels), q.rounding),
        floor_(q.relu ? 0.f : -INFINITY) {
    const int64_t by_row = (y1 - y0) * across_, joined = ceil_div((y1 - y0) * q.out.pitch(), 16);
    joined_ = q.stride == 1 && joined < by_row;
    strips_ = joined_ ? joined : by_row;
    for (int s = 0; s < q.sources; ++s) {
      const int64_t channels = q.source[s].channels, pixel = channels * sizeof(E);
      const int64_t each = tile_steps(channels, q.kernel, sizeof(E));
      const void* from = kBytes ? static_cast<const void*>(q.source[s].bytes) : q.source[s].high;
      origin_[s] = {static_cast<const char*>(from) + image * q.in.image(channels) * sizeof(E),
                    q.weight[s],
                    pixel,
                    each * kTileBytes,
                    q.in.pitch() * pixel,
                    q.stride * pixel,
                    q.kernel * pixel};
      steps_ += static_cast<int>(each);
    }
    strip_ = static_cast<Strip*>(scratch(1, strips_ * sizeof(Strip)));
    for (int64_t i = 0; i < strips_; ++i) strip_[i] = strip(i);
    residual_base_ = image * q.out.image(q.residual.channels);
    pending_.units = 0, pending_.strip = pending_.last = nullptr;
    if (flat_)
      for (int64_t p = 0; p < 16; ++p) {
        std::memcpy(bias_ + p * q.c_out, q.bias, q.c_out * sizeof(float));
        if constexpr (kBytes) std::memcpy(scale_ + p * q.c_out, q.scale, q.c_out * sizeof(float));
      }
  }
  // Groups first .. last - 1 of the output channels.
  void run(int64_t first, int64_t last) {
    if (first == 0) borders();
    const TileGroups groups(q_.c_out);
    const int64_t bytes = steps_ * groups.tiles * kTileBytes;
    // weights that stay in the cache are read again for every few pixels, others once for all of them
    const int64_t together = bytes > kWeightsStay ? strips_ : 4;
    for (int64_t from = 0; from < strips_; from += together)
      for (int64_t g = first; g < last; ++g)
        for (int64_t s = from, end = from + together < strips_ ? from + together : strips_; s < end;)
          s += step(groups.width(g), groups.first(g), s, end - s);
    finish(kAll);
  }

 private:
  static constexpr int64_t kWeightsStay = 512 << 10;

  Strip strip(int64_t i) const {
    const int64_t pad = q_.kernel / 2, pitch = q_.out.pitch();
    if (joined_) {
      const int64_t p = 16 * i, left = (y1_ - y0_) * pitch - p;
      uint32_t border = 0;
      for (int64_t x = q_.out.w - p % pitch; x < 16; x += pitch) border |= 1u << x;
      const uint32_t within = left >= 16 ? 0xffff : (1u << left) - 1;
      return {q_.in.at(y0_ - pad, -pad) + p, q_.out.at(y0_, 0) + p, within & ~border, within & border};
    }
    const int64_t y = y0_ + i / across_, x = i % across_ * 16, left = q_.out.w - x;
    return {q_.in.at(y * q_.stride - pad, x * q_.stride - pad), q_.out.at(y, x), left >= 16 ? 0xffff : (1u << left) - 1,
            left < 16 ? 1u << left : 0};
  }

  // A block of at most `left` strips; how many they were.
  int64_t step(int width, int64_t tile, int64_t s, int64_t left) {
    switch (width) {
      case 1: return left >= 4 ? block<4, 1>(tile, s) : left >= 2 ? block<2, 1>(tile, s) : block<1, 1>(tile, s);
      case 2: return left >= 2 ? block<2, 2>(tile, s) : block<1, 2>(tile, s);
      default: return left >= 2 ? block<2, 3>(tile, s) : block<1, 3>(tile, s);
    }
  }

  template <int MT, int NT>
  int64_t block(int64_t tile, int64_t first) {
    const Strip* strips = strip_ + first;
    int wait = steps_ > 4 ? 3 : 0;  // what tiles have stored cannot be loaded at once
    const int even = (pending_.units + steps_ - wait - 1) / (steps_ - wait), share = even < kShare ? kShare : even;
    TileSource<MT> sources[kMaxSources];
    for (int s = 0; s < q_.sources; ++s) {
      const Origin& o = origin_[s];
      sources[s] = {{}, o.weight + tile * o.tile, o.row, o.step, q_.kernel, o.bytes};
      for (int m = 0; m < MT; ++m) sources[s].at[m] = o.image + strips[m].from * o.pixel;
    }
    float* to = buffer_[side_];
    side_ ^= 1;
    const int64_t channels = flat_ ? q_.c_out : NT * 16;  // of a pixel in the buffer
    const TileTarget target = {reinterpret_cast<char*>(to), 64 * channels, 4 * channels, kTileRow, false};
    Blocks::template multiply<E, MT, NT>(sources, q_.sources, target, [&] {
      if (--wait < 0) finish(share);
    });
    finish(kAll);
    pending_.sums = to, pending_.strip = strips, pending_.last = strips + MT;
    pending_.channel = tile * 16;
    pending_.units = flat_ ? MT * static_cast<int>(q_.c_out) : MT * 16;
    pending_.finish = finisher<NT>();
    begin_strip();
    return MT;
  }

  inline __attribute__((always_inline)) void finish(int units) {
    if (pending_.strip != pending_.last) (this->*pending_.finish)(pending_, units);
  }
  // What finishes a block for the forms of the residual and of the output.
  template <int NT>
  auto finisher() const {
    constexpr int kBoth = kHigh + kBytesToo;
    const int adds = q_.residual.high == nullptr ? 0 : q_.residual.low == nullptr ? 1 : 2;
    if (q_.output.bytes != nullptr) {  // sums of bytes have no low halves around them
      if (q_.output.high == nullptr) return adds == 0 ? finisher<NT, 0, kBytesToo>() : finisher<NT, 1, kBytesToo>();
      return adds == 0 ? finisher<NT, 0, kBoth>() : finisher<NT, 1, kBoth>();
    }
    if constexpr (!kBytes) {
      if (q_.output.low != nullptr)
        return adds == 0   ? finisher<NT, 0, kHigh + kLow>()
               : adds == 1 ? finisher<NT, 1, kHigh + kLow>()
                           : finisher<NT, 2, kHigh + kLow>();
      if (adds == 2) return finisher<NT, 2, kHigh>();
    }
    return adds == 0 ? finisher<NT, 0, kHigh>() : finisher<NT, 1, kHigh>();
  }
  // ADDS: numbers of the residual; OUT: forms of the output.
  template <int NT, int ADDS, int OUT>
  auto finisher() const {
    if (flat_) return &TiledTask::finish_flat<ADDS, OUT>;
    const bool full = q_.c_out - pending_.channel >= NT * 16;
    return full ? &TiledTask::finish_rows<NT, ADDS, OUT, true> : &TiledTask::finish_rows<NT, ADDS, OUT, false>;
  }
  void begin_strip() {
    Pending& p = pending_;
    const int64_t at = p.strip->to * q_.c_out + p.channel;
    p.bias = flat_ ? bias_ : q_.bias + p.channel;
    p.scale = flat_ || !kBytes ? scale_ : q_.scale + p.channel;
    p.high = out_.at.high == nullptr ? nullptr : out_.at.high + at;
    p.low = out_.at.low == nullptr ? nullptr : out_.at.low + at;
    p.bytes = out_.at.bytes == nullptr ? nullptr : out_.at.bytes + at;
    p.add_high = q_.residual.high == nullptr ? nullptr : q_.residual.high + residual_base_ + at;
    p.add_low = q_.residual.low == nullptr ? nullptr : q_.residual.low + residual_base_ + at;
    p.left = flat_ ? numbers(*p.strip) / 16 : 16;
  }
  // Goes on by some channels or pixels in all that the forms need.
  template <int ADDS, int OUT>
  static inline __attribute__((always_inline)) void advance(Pending& p, int64_t count) {
    if constexpr (OUT & kHigh) p.high += count;
    if constexpr (OUT & kLow) p.low += count;
    if constexpr (OUT & kBytesToo) p.bytes += count;
    if constexpr (ADDS > 0) p.add_high += count;
    if constexpr (ADDS > 1) p.add_low += count;
  }
  // Those that are written, with what lies behind rows.
  int numbers(const Strip& s) const { return (32 - __builtin_clz(s.inside | s.border)) * static_cast<int>(q_.c_out); }

  // What all vectors need.
  struct Constants {
    V floor, per_unit, zero;
    explicit Constants(const TiledTask& t)
        : floor(V::set1(t.floor_)),
          per_unit(V::set1(t.q_.rounding.per_unit)),
          zero(V::set1(static_cast<float>(t.q_.rounding.zero))) {}
  };
  static inline __attribute__((always_inline)) V biased(const float* sums, V scale, V bias) {
    if constexpr (kBytes)
      return V::fma(load_products<V, E>(sums), scale, bias);
    else
      return V::load(sums) + bias;
  }
  // Channels from `skip` on. LANES: all sixteen, or those of the last argument.
  template <int ADDS, int OUT, class... Lanes>
  static inline __attribute__((always_inline)) void finish_vector(V y, const Constants& k, const Pending& p, int skip,
                                                                  Lanes... lanes) {
    if constexpr (ADDS > 0) y = y + V::load(p.add_high + skip, lanes...);
    if constexpr (ADDS > 1) y = y + V::load(p.add_low + skip, lanes...);
    y = y.at_least(k.floor);
    if constexpr (OUT & kLow)
      y.store_sum(p.high + skip, p.low + skip, lanes...);
    else if constexpr (OUT & kHigh)
      y.store(p.high + skip, lanes...);
    if constexpr (OUT & kBytesToo) V::fma(y, k.per_unit, k.zero).store_bytes(p.bytes + skip, lanes...);
  }
  // The next vectors of the pending block.
  template <int ADDS, int OUT>
  void finish_flat(Pending& pending, int units) {
    const Constants constants(*this);
    for (;;) {
      Pending p = pending;  // not in memory: the compiler must assume that stores change what lies there
      const int count = units < p.left ? units : p.left;
      for (int i = 0; i < count; ++i) {
        finish_vector<ADDS, OUT>(biased(p.sums, kBytes ? V::load(p.scale) : V::zero(), V::load(p.bias)), constants, p,
                                 0);
        p.sums += 16, p.bias += 16;
        if constexpr (kBytes) p.scale += 16;
        advance<ADDS, OUT>(p, 16);
      }
      p.left -= count, units -= count;
      if (p.left == 0) {
        const int rest = numbers(*p.strip) % 16;
        if (rest != 0)
          finish_vector<ADDS, OUT>(biased(p.sums, kBytes ? V::load(p.scale) : V::zero(), V::load(p.bias)), constants, p,
                                   0, rest);
        behind_rows(*p.strip);
        p.sums += 16 * q_.c_out - (p.bias - bias_);
      }
      pending = p;
      if (p.left > 0) return;
      if (++pending.strip == pending.last) return;
      begin_strip();
      if (units == 0) return;
    }
  }
  void behind_rows(const Strip& s) const {
    if (s.border == 0) return;
    for (int j = 0; j < 16; ++j)
      if (s.border >> j & 1) out_.clear((s.to + j) * q_.c_out, q_.c_out);
  }
  // The next rows of the pending block. FULL: all channels of its tiles are there.
  template <int NT, int ADDS, int OUT, bool FULL>
  void finish_rows(Pending& pending, int units) {
    const Constants constants(*this);
    const int64_t c = q_.c_out;
    const int last = FULL ? 16 : static_cast<int>(c - pending.channel - (NT - 1) * 16);
    for (;;) {
      Pending p = pending;
      V bias[NT], scale[NT];
      unroll<NT>([&](auto n) {
        const int lanes = !FULL && n() == NT - 1 ? last : 16;
        bias[n()] = V::load(p.bias + n() * 16, lanes);
        if constexpr (kBytes) scale[n()] = V::load(p.scale + n() * 16, lanes);
      });
      const int count = units < p.left ? units : p.left;
      const uint32_t inside = p.strip->inside >> (16 - p.left), border = p.strip->border >> (16 - p.left);
      for (int i = 0; i < count; ++i) {
        if (inside >> i & 1)
          unroll<NT>([&](auto n) {
            constexpr int c0 = n() * 16;
            const V y = biased(p.sums + c0, scale[n()], bias[n()]);
            if constexpr (FULL || n() < NT - 1)
              finish_vector<ADDS, OUT>(y, constants, p, c0);
            else
              finish_vector<ADDS, OUT>(y, constants, p, c0, last);
          });
        else if (border >> i & 1)
          out_.clear((p.strip->to + 16 - p.left + i) * c + p.channel, (NT - 1) * 16 + last);
        p.sums += NT * 16;
        advance<ADDS, OUT>(p, c);
      }
      p.left -= count, units -= count;
      pending = p;
      if (p.left > 0) return;
      if (++pending.strip == pending.last) return;
      begin_strip();
      if (units == 0) return;
    }
  }

  void borders() const {
    out_.clear_around(q_.out, y0_, y1_);
    if (!joined_ && q_.out.w % 16 == 0)
      for (int64_t y = y0_; y < y1_; ++y) out_.clear_after(q_.out, y);
  }
};
