// Exchanges between resolutions of images that tiles read: 1x1 convolutions of inputs of the same size, the sum with
// smaller inputs interpolated, ReLU, and the projection of the result. Included inside the namespace of one instruction
// set.
//
// A row is computed some channels at a time, so that all of it stays in the first cache: the rows of the smaller inputs
// interpolated downwards, then sixteen pixels at a time their products, the sum, and its share of the projection.

template <class Blocks, class V>
class TiledExchangeTask {
  // Channels at a time: those of two groups, at most five tiles; and the room that the projection's steps read.
  static constexpr int64_t kBlock = 80, kRounded = 96;
  struct Tap {  // where a pixel comes from: elements of a row
    int64_t left, right;
    float w0, w1;
  };
  struct Up {  // a smaller input
    int input;
    float* row;  // [its width][kBlock], interpolated downwards
    Tap* taps;  // of each pixel of the output
  };
  struct Same {
    const BFloat16 *high, *low;  // of the row
  };
  const TiledExchange& q_;
  const int64_t image_, strips_;  // of sixteen pixels in a row
  Up up_[kMaxInputs];
  int same_[kMaxInputs], product_[kMaxInputs];
  int ups_ = 0, sames_ = 0, products_ = 0;
  float *sums_[2], *projected_;  // of a strip and the next
  BFloat16* rounded_[2];
  const Written out_;

 public:
  TiledExchangeTask(const TiledExchange& q, int64_t image)
      : q_(q),
        image_(image),
        strips_(ceil_div(q.out.w, 16)),
        out_(q.output, image * q.out.image(q.output.channels), q.rounding) {
    for (int measure = 1; measure >= 0; --measure) {
      Arena arena(measure ? nullptr : scratch(0, bytes_));
      for (int i = 0; i < 2; ++i)
        sums_[i] = arena.take<float>(16 * kBlock), rounded_[i] = arena.take<BFloat16>(16 * kRounded);
      projected_ = arena.take<float>(strips_ * 256 * TileGroups(q.output.channels).tiles);
      ups_ = 0;
      for (int j = 0; j < q.count; ++j)
        if (!same_size(j)) {
          float* row = arena.take<float>(q.size[j].w * kBlock);
          up_[ups_++] = {j, row, arena.take<Tap>(q.out.w)};
        }
      bytes_ = arena.used();
    }
    for (int j = 0; j < q.count; ++j)
      if (same_size(j)) (q.weight[j] ? product_[products_++] : same_[sames_++]) = j;
    for (int u = 0; u < ups_; ++u)
      for (int64_t x = 0; x < q.out.w; ++x) {
        const SourcePixel from = source_pixel(q.mode, x, q.size[up_[u].input].w, q.out.w);
        up_[u].taps[x] = {from.i0 * kBlock, from.i1 * kBlock, from.w0, from.w1};
      }
  }
  void run(int64_t y0, int64_t y1) {
    const TileGroups groups(q_.channels);
    out_.clear_around(q_.out, y0, y1);
    for (int64_t y = y0; y < y1; ++y) {
      out_.clear_after(q_.out, y);
      for (int64_t g = 0; g < groups.count(); g += 2) block(y, g, groups.count() - g < 2 ? 1 : 2);
      if (q_.projection != nullptr) finish(y);
    }
  }

 private:
  int64_t bytes_ = 0;

  bool same_size(int j) const { return q_.size[j].h == q_.out.h && q_.size[j].w == q_.out.w; }
  Same row_of(int j, int64_t y) const {
    const Bordered& x = q_.input[j];
    const int64_t at = image_ * q_.size[j].image(x.channels) + q_.size[j].at(y, 0) * x.channels;
    return {x.high + at, x.low ? x.low + at : nullptr};
  }

  // The channels of groups first .. first + groups - 1 of a row.
  void block(int64_t y, int64_t first, int64_t groups) const {
    const TileGroups all(q_.channels);
    const int64_t c = all.first(first) * 16;
    const int vectors = all.width(first) + (groups > 1 ? all.width(first + 1) : 0);
    for (int u = 0; u < ups_; ++u) downwards(up_[u], y, c, vectors);
    const bool projects = q_.projection != nullptr;
    for (int i = 0; projects && i < 2; ++i) std::memset(rounded_[i], 0, 16 * kRounded * sizeof(BFloat16));
    // products are stored a strip before they are read, and what is projected a strip before that
    products(y, 0, first, groups);
    for (int64_t s = 0; s < strips_; ++s) {
      const int64_t x = 16 * s, count = q_.out.w - x < 16 ? q_.out.w - x : 16;
      if (s + 1 < strips_) products(y, s + 1, first, groups);
      switch (ups_) {
        case 0: sum<0>(y, x, count, c, vectors); break;
        case 1: sum<1>(y, x, count, c, vectors); break;
        case 2: sum<2>(y, x, count, c, vectors); break;
        case 3: sum<3>(y, x, count, c, vectors); break;
        default: sum<kMaxInputs>(y, x, count, c, vectors);
      }
      if (projects && s > 0) project(s - 1, c, ceil_div(vectors * 16, kTileDepth<BFloat16>));
    }
    if (projects) project(strips_ - 1, c, ceil_div(vectors * 16, kTileDepth<BFloat16>));
  }

  void downwards(const Up& up, int64_t y, int64_t c, int vectors) const {
    const SourcePixel s = source_pixel(q_.mode, y, q_.size[up.input].h, q_.out.h);
    const Same a = row_of(up.input, s.i0), b = row_of(up.input, s.i1);
    const V w0 = V::set1(s.w0), w1 = V::set1(s.w1);
    for (int64_t x = 0; x < q_.size[up.input].w; ++x)
      for (int v = 0; v < vectors; ++v) {
        const int64_t at = x * q_.channels + c + v * 16;
        V value = load_sum<V>(a.high + at, a.low ? a.low + at : nullptr) * w0;
        if (s.w1 != 0) value = V::fma(load_sum<V>(b.high + at, b.low ? b.low + at : nullptr), w1, value);
        value.store(up.row + x * kBlock + v * 16);
      }
  }

  // Tiles `tile` .. `tile` + NT - 1 of a weight, steps first .. first + steps - 1 of the `all` that it has; to [16
  // pixels] in rows of `row` bytes.
  template <class E, int NT>
  void multiply(const E* at, int64_t pixel, const char* weight, int64_t tile, int64_t all, int64_t first, int64_t steps,
                bool add, float* to, int64_t row) const {
    const char* from = weight + (tile * all + NT * first) * kTileBytes;
    const int64_t size = static_cast<int64_t>(sizeof(E));
    const TileSource<1> source = {{reinterpret_cast<const char*>(at)}, from, 0, pixel * size, 1, steps * kTileRow};
    Blocks::template multiply<E, 1, NT>(&source, 1, {reinterpret_cast<char*>(to), 0, row, kTileRow, add}, [] {});
  }
  template <class E, class... Arguments>
  void multiply_group(int width, const E* at, Arguments... arguments) const {
    switch (width) {
      case 1: return multiply<E, 1>(at, arguments...);
      case 2: return multiply<E, 2>(at, arguments...);
      default: return multiply<E, 3>(at, arguments...);
    }
  }
  // Of strip s, by the weights of groups first .. first + count - 1.
  void products(int64_t y, int64_t s, int64_t first, int64_t count) const {
    for (int i = 0; i < products_; ++i) {
      const Bordered& x = q_.input[product_[i]];
      const int64_t at = image_ * q_.out.image(x.channels) + q_.out.at(y, 16 * s) * x.channels;
      if (q_.scale != nullptr)
        products(x.bytes + at, i, s, first, count);
      else
        products(x.high + at, i, s, first, count);
    }
  }
  template <class E>
  void products(const E* at, int i, int64_t s, int64_t first, int64_t count) const {
    const TileGroups groups(q_.channels);
    const int j = product_[i];
    const int64_t pixel = q_.input[j].channels, steps = tile_steps(pixel, 1, sizeof(E));
    for (int64_t g = first; g < first + count; ++g) {
      float* to = sums_[s % 2] + (groups.first(g) - groups.first(first)) * 16;
      multiply_group(groups.width(g), at, pixel, q_.weight[j], groups.first(g), steps, int64_t{0}, steps, i > 0, to,
                     kBlock * 4);
    }
  }
  // What pixels of strip s add to their projection by `steps` times 32 channels from c on.
  void project(int64_t s, int64_t c, int64_t steps) const {
    const TileGroups groups(q_.output.channels);
    Blocks::written();
    for (int64_t g = 0; g < groups.count(); ++g)
      multiply_group(groups.width(g), static_cast<const BFloat16*>(rounded_[s % 2]), kRounded, q_.projection,
                     groups.first(g), tile_steps(q_.channels, 1, 2), c / kTileDepth<BFloat16>, steps, c > 0,
                     projected_ + s * 256 * groups.tiles + groups.first(g) * 16, groups.tiles * kTileRow);
  }
  void finish(int64_t y) const {
    const int64_t c = q_.output.channels, row = TileGroups(c).tiles * 16, first = q_.out.at(y, 0) * c;
    for (int64_t x = 0; x < q_.out.w; ++x)
      for (int64_t i = 0; i < c; i += 16) {
        const int lanes = static_cast<int>(c - i < 16 ? c - i : 16);
        const V value = V::load(projected_ + x * row + i) + V::load(q_.projection_bias + i, lanes);
        store_forms(value, first + x * c + i, lanes);
      }
  }
  // Some numbers from an element of the output on.
  void store_forms(V value, int64_t at, int lanes) const {
    const Bordered& to = out_.at;
    if (to.low != nullptr)
      value.store_sum(to.high + at, to.low + at, lanes);
    else if (to.high != nullptr)
      value.store(to.high + at, lanes);
    if (to.bytes != nullptr)
      V::fma(value, V::set1(q_.rounding.per_unit), V::set1(static_cast<float>(q_.rounding.zero)))
          .store_bytes(to.bytes + at, lanes);
  }
  // UPS: their number, or kMaxInputs: any.
  template <int UPS>
  void sum(int64_t y, int64_t x, int64_t count, int64_t c, int vectors) const {
    switch (vectors) {
      case 1: return columns<UPS, 1>(y, x, count, c, 0);
      case 2: return columns<UPS, 2>(y, x, count, c, 0);
      case 3: return columns<UPS, 3>(y, x, count, c, 0);
      case 4: return columns<UPS, 4>(y, x, count, c, 0);
      default: columns<UPS, 4>(y, x, count, c, 0), columns<UPS, 1>(y, x, count, c, 64);
    }
  }
  // Channels from c + skip on.
  template <int UPS, int NV>
  void columns(int64_t y, int64_t x, int64_t count, int64_t block, int64_t skip) const {
    const int64_t c = block + skip;
    const int ups = UPS < kMaxInputs ? UPS : ups_, sames = sames_;
    const int64_t channels = q_.channels, left = channels - c - (NV - 1) * 16;
    const int last = static_cast<int>(left < 16 ? left : 16);
    const bool projects = q_.projection != nullptr;
    const V floor = V::set1(q_.relu ? 0.f : -INFINITY);
    V bias[NV], scale[NV];
    unroll<NV>([&](auto v) {
      const int lanes = v() == NV - 1 ? last : 16;
      bias[v()] = q_.bias == nullptr ? V::zero() : V::load(q_.bias + c + v() * 16, lanes);
      scale[v()] = q_.scale == nullptr ? V::zero() : V::load(q_.scale + c + v() * 16, lanes);
    });
    Same same[kMaxInputs];
    for (int i = 0; i < sames; ++i) {
      same[i] = row_of(same_[i], y);
      same[i].high += x * channels + c;
      if (same[i].low != nullptr) same[i].low += x * channels + c;
    }
    const int64_t first = q_.out.at(y, x) * q_.output.channels + c;
    BFloat16* rounded = projects ? rounded_[x / 16 % 2] + skip : nullptr;
    const float* base = products_ > 0 ? sums_[x / 16 % 2] + skip : nullptr;
    const float* rows[kMaxInputs];
    const Tap* taps[kMaxInputs];
    for (int u = 0; u < ups; ++u) rows[u] = up_[u].row + skip, taps[u] = up_[u].taps + x;
    for (int64_t p = 0; p < count; ++p) {
      V sum[NV];
      unroll<NV>([&](auto v) { sum[v()] = bias[v()]; });
      if (base != nullptr && q_.scale != nullptr)
        unroll<NV>(
            [&](auto v) { sum[v()] = V::fma(V::load_integers(base + p * kBlock + v() * 16), scale[v()], sum[v()]); });
      else if (base != nullptr)
        unroll<NV>([&](auto v) { sum[v()] = sum[v()] + V::load(base + p * kBlock + v() * 16); });
      for (int i = 0; i < sames; ++i) {
        const BFloat16 *h = same[i].high + p * channels, *l = same[i].low;
        unroll<NV>([&](auto v) { sum[v()] = sum[v()] + V::load(h + v() * 16); });
        if (l != nullptr) unroll<NV>([&](auto v) { sum[v()] = sum[v()] + V::load(l + p * channels + v() * 16); });
      }
      for (int u = 0; u < ups; ++u) {
        const Tap& tap = taps[u][p];
        const float *a = rows[u] + tap.left, *b = rows[u] + tap.right;
        const V w0 = V::set1(tap.w0), w1 = V::set1(tap.w1);
        unroll<NV>(
            [&](auto v) { sum[v()] = V::fma(V::load(b + v() * 16), w1, V::fma(V::load(a + v() * 16), w0, sum[v()])); });
      }
      unroll<NV>([&](auto v) {
        const V value = sum[v()].at_least(floor);
        const int lanes = v() == NV - 1 ? last : 16;
        if (projects)
          value.store(rounded + p * kRounded + v() * 16, lanes);
        else
          store_forms(value, first + p * channels + v() * 16, lanes);
      });
    }
  }
};

// Rows y0 .. y1 - 1 of an image with dense planes, brought into the layout of tiles.
template <class V>
static void reorder_rows(const Reorder& q, int64_t image, int64_t y0, int64_t y1) {
  const int64_t c = q.to.channels, plane = q.size.h * q.size.w, base = image * q.size.image(c);
  const Written out(q.to, base, q.rounding);
  out.clear_around(q.size, y0, y1);
  with_type(q.from.dtype, [&](auto* type) {
    const auto* from = static_cast<decltype(type)>(const_cast<void*>(q.from.data)) + image * q.from.image_stride;
    BFloat16 high[16][16], low[16][16];
    uint8_t bytes[16][16];
    const V per_unit = V::set1(q.rounding.per_unit), zero = V::set1(static_cast<float>(q.rounding.zero));
    for (int64_t y = y0; y < y1; ++y) {
      out.clear_after(q.size, y);
      for (int64_t x = 0; x < q.size.w; x += 16)
        for (int64_t first = 0; first < c; first += 16) {
          const int64_t pixels = q.size.w - x < 16 ? q.size.w - x : 16, channels = c - first < 16 ? c - first : 16;
          for (int64_t i = 0; i < channels; ++i) {
            V value = V::load(from + (first + i) * plane + y * q.size.w + x, static_cast<int>(pixels));
            if (q.scale != nullptr) value = V::fma(value, V::set1(q.scale[first + i]), V::set1(q.shift[first + i]));
            value.store_sum(high[i], low[i], 16);
            V::fma(value, per_unit, zero).store_bytes(bytes[i]);
          }
          const auto turned = [&](auto* to, const auto(&rows)[16][16]) {
            if (to == nullptr) return;
            to += q.size.at(y, x) * c + first;
            for (int64_t p = 0; p < pixels; ++p)
              for (int64_t i = 0; i < channels; ++i) to[p * c + i] = rows[i][p];
          };
          turned(out.at.high, high), turned(out.at.low, low), turned(out.at.bytes, bytes);
        }
    }
  });
}

// The other way round: rows y0 .. y1 - 1 of dense planes.
static inline void restore_rows(const Restore& q, int64_t image, int64_t y0, int64_t y1) {
  const int64_t c = q.from.channels, plane = q.size.h * q.size.w;
  const auto restore = [&](auto* to, auto convert) {
    to += image * q.to.image_stride;
    for (int64_t y = y0; y < y1; ++y) {
      const BFloat16* from = q.from.high + image * q.size.image(c) + q.size.at(y, 0) * c;
      for (int64_t x = 0; x < q.size.w; x += 64)  // what is read again stays in the first cache
        for (int64_t i = 0; i < c; ++i)
          for (int64_t p = x; p < q.size.w && p < x + 64; ++p)
            to[i * plane + y * q.size.w + p] = convert(from[p * c + i]);
    }
  };
  void* to = const_cast<void*>(q.to.data);
  if (q.to.dtype == DType::kFloat32)
    restore(static_cast<float*>(to), [](BFloat16 x) { return to_float(x); });
  else
    restore(static_cast<BFloat16*>(to), [](BFloat16 x) { return x; });
}
