// Channels-last bfloat16 products on AMX tiles. Included inside the namespace of one instruction set.

// Tiles 0 to 2 accumulate 16 pixels x 16 output channels each, 3 holds the pixels, 4 to 6 the weights.
static inline __attribute__((always_inline)) void configure_tiles(int pixels) {
  TileConfig config;
  for (int t = 0; t < 7; ++t) {
    config.bytes_per_row[t] = 64;
    config.rows[t] = static_cast<uint8_t>(t < 4 ? pixels : 16);
  }
  config.load();
}

template <int NV>
static inline __attribute__((always_inline)) void amx_tile(int64_t blocks, const BFloat16* x, int64_t step,
                                                           const BFloat16* packed, float* z, bool accumulate) {
  constexpr int64_t kTile = 512, kRow = 64;  // elements of a tile of weights; its bytes a row
  const int64_t x_row = step * 2, z_row = NV * 64;
  if (accumulate) {
    _tile_loadd(0, z, z_row);
    if constexpr (NV > 1) _tile_loadd(1, z + 16, z_row);
    if constexpr (NV > 2) _tile_loadd(2, z + 32, z_row);
  } else {
    _tile_zero(0);
    if constexpr (NV > 1) _tile_zero(1);
    if constexpr (NV > 2) _tile_zero(2);
  }
  for (int64_t k = 0; k < blocks; ++k, x += 32, packed += NV * kTile) {
    _tile_loadd(3, x, x_row);
    _tile_loadd(4, packed, kRow);
    _tile_dpbf16ps(0, 3, 4);
    if constexpr (NV > 1) {
      _tile_loadd(5, packed + kTile, kRow);
      _tile_dpbf16ps(1, 3, 5);
    }
    if constexpr (NV > 2) {
      _tile_loadd(6, packed + 2 * kTile, kRow);
      _tile_dpbf16ps(2, 3, 6);
    }
  }
  _tile_stored(0, z, z_row);
  if constexpr (NV > 1) _tile_stored(1, z + 16, z_row);
  if constexpr (NV > 2) _tile_stored(2, z + 32, z_row);
}

template <class V, class T>
struct AmxProducts {
  using Operand = BFloat16;
  static constexpr bool kTails = false;
  static constexpr int64_t kStepChannels = 32;  // rows of other widths are copied and padded with zeros

  static int64_t packed_size(int64_t in, const Panels<V>& panels) { return round_up(in, 32) * panels.padded(); }

  // [panel][32 input channels][16 output channels][16 pairs][16][2]
  static void pack(const Matrix& w, const Panels<V>& panels, int64_t p, Operand* to) {
    const T* from = static_cast<const T*>(w.data);
    const int64_t start = panels.start(p), in = round_up(w.cols, 32);
    to += start * in;
    const int vectors = panels.width(p);
    if (w.col_stride == 1) {
      for (int64_t block = 0; block < in; block += 32)
        for (int v = 0; v < vectors; ++v, to += 512)
          pack_transposed<V>([&](int i) { return load_pairs<V>(w, start + v * 16 + i, block); }, 16,
                             reinterpret_cast<float*>(to), 16);
      return;
    }
    for (int64_t block = 0; block < in; block += 32)
      for (int v = 0; v < vectors; ++v, to += 512)
        for (int64_t n = 0; n < 16; ++n) {
          const int64_t row = start + v * 16 + n;
          const T* source = from + row * w.row_stride;
          for (int64_t k = 0; k < 32; ++k)
            to[(k / 2) * 32 + 2 * n + (k & 1)] =
                row < w.rows && block + k < w.cols ? source[(block + k) * w.col_stride] : BFloat16{0};
        }
  }

  // One pixel's channels, with zeros up to a multiple of 32.
  static void pad(const Operand* from, int64_t channels, Operand* to) {
    for (int64_t c = 0; c < channels; c += 32) {
      const __mmask32 mask = channels - c >= 32 ? ~__mmask32{0} : (__mmask32{1} << (channels - c)) - 1;
      _mm512_storeu_si512(to + c, _mm512_maskz_loadu_epi16(mask, from + c));
    }
  }

  static void panel(const Operand* x, int64_t step, int64_t pixels, int64_t in, const Operand* packed,
                    const Panels<V>& panels, int64_t p, float* z, bool accumulate) {
    const int64_t blocks = ceil_div(in, 32);
    packed += panels.start(p) * blocks * 32;
    switch (panels.width(p)) {
      case 1: return strip<1>(blocks, x, step, pixels, packed, z, accumulate);
      case 2: return strip<2>(blocks, x, step, pixels, packed, z, accumulate);
      default: return strip<3>(blocks, x, step, pixels, packed, z, accumulate);
    }
  }

 private:
  template <int NV>
  static void strip(int64_t blocks, const Operand* x, int64_t step, int64_t pixels, const Operand* packed, float* z,
                    bool accumulate) {
    // The tile intrinsics do not tell the compiler what memory they touch.
    __asm__ volatile("" ::: "memory");
    int64_t m = 0;
    if (pixels >= 16) configure_tiles(16);
    for (; m + 16 <= pixels; m += 16) amx_tile<NV>(blocks, x + m * step, step, packed, z + m * NV * 16, accumulate);
    if (m < pixels) {
      configure_tiles(static_cast<int>(pixels - m));
      amx_tile<NV>(blocks, x + m * step, step, packed, z + m * NV * 16, accumulate);
    }
    _tile_release();  // torch's own users of the tiles find them as they expect: unconfigured
    __asm__ volatile("" ::: "memory");
  }
};
