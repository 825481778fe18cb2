// The tile registers of AMX on arrays, bit by bit the same. Included inside the namespace of one instruction set.

class EmulatedTiles {
  static constexpr int64_t kRow = 64;
  struct Tile {
    char row[16][kRow];
  };
  static Tile& tile(int t) {
    static thread_local Tile tiles[8];
    return tiles[t];
  }

 public:
  static void configure() {}
  static void release() {}
  static void written() {}
  template <int T>
  static void zero() {
    std::memset(&tile(T), 0, sizeof(Tile));
  }
  template <int T>
  static void load(const void* p, int64_t stride) {
    for (int r = 0; r < 16; ++r) std::memcpy(tile(T).row[r], static_cast<const char*>(p) + r * stride, kRow);
  }
  template <int T>
  static void store(void* p, int64_t stride) {
    for (int r = 0; r < 16; ++r) std::memcpy(static_cast<char*>(p) + r * stride, tile(T).row[r], kRow);
  }
  template <class E, int C, int A, int B>
  static void multiply() {
    if constexpr (sizeof(E) == 1)
      byte_product(tile(C), tile(A), tile(B));
    else
      product(tile(C), tile(A), tile(B));
  }

 private:
  static float flushed(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.f, x) : x; }
  static float number(uint16_t bits) { return flushed(to_float(BFloat16{bits})); }
  // Even and odd elements are summed apart, then together, then added; each step rounds, and flushes subnormals.
  static void product(Tile& c, const Tile& a, const Tile& b) {
    for (int m = 0; m < 16; ++m) {
      float even[16] = {}, odd[16] = {}, sum[16];
      uint16_t x[32], w[32];
      std::memcpy(x, a.row[m], kRow);
      for (int k = 0; k < 16; ++k) {
        std::memcpy(w, b.row[k], kRow);
        const float x0 = number(x[2 * k]), x1 = number(x[2 * k + 1]);
        for (int n = 0; n < 16; ++n) {
          even[n] = flushed(std::fma(x0, number(w[2 * n]), even[n]));
          odd[n] = flushed(std::fma(x1, number(w[2 * n + 1]), odd[n]));
        }
      }
      std::memcpy(sum, c.row[m], kRow);
      for (int n = 0; n < 16; ++n) sum[n] = flushed(flushed(sum[n]) + flushed(even[n] + odd[n]));
      std::memcpy(c.row[m], sum, kRow);
    }
  }
  // Unsigned bytes by signed ones, four to an integer.
  static void byte_product(Tile& c, const Tile& a, const Tile& b) {
    for (int m = 0; m < 16; ++m) {
      int32_t sum[16];
      std::memcpy(sum, c.row[m], kRow);
      for (int k = 0; k < 16; ++k)
        for (int n = 0; n < 16; ++n)
          for (int e = 0; e < 4; ++e)
            sum[n] += static_cast<uint8_t>(a.row[m][4 * k + e]) * static_cast<int8_t>(b.row[k][4 * n + e]);
      std::memcpy(c.row[m], sum, kRow);
    }
  }
};
