// The tile registers of AMX. Included inside the namespace of one instruction set.

struct TileConfig {  // the operand of LDTILECFG
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};
  void load() const { __asm__ volatile("ldtilecfg %0" ::"m"(*this) : "memory"); }
};

// Eight tiles of sixteen rows. Not by intrinsics: GCC's are macros that want literal numbers. Only stores are said to
// touch memory; who writes what a tile loads calls written() in between.
struct AmxTiles {
  static void configure() {
    TileConfig config;
    for (int t = 0; t < 8; ++t) config.bytes_per_row[t] = 64, config.rows[t] = 16;
    config.load();
  }
  // Other users of the tiles find them as they expect: unconfigured.
  static void release() { __asm__ volatile("tilerelease"); }
  static void written() { __asm__ volatile("" ::: "memory"); }
  template <int T>
  static void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  static void load(const void* p, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T));
  }
  template <int T>
  static void store(void* p, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(T) : "memory");
  }
  // E: of the factors; bytes are unsigned in A, and signed in B.
  template <class E, int C, int A, int B>
  static void multiply() {
    if constexpr (sizeof(E) == 1)
      __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
    else
      __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};
