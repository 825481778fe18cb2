// Weights in the order in which tiles are loaded.
#include <cstring>

#include "problem.h"
#include "tiled.h"

namespace hrnet_fast {
namespace {

BFloat16 factor_of(float x) { return to_bfloat16(x); }
int8_t factor_of(int8_t x) { return x; }

template <class From>
struct Packing {
  using Factor = decltype(factor_of(From{}));
  const From* weight;
  int64_t c_out, c_in;
  int kernel;
  Factor* packed;

  static void pack(int64_t begin, int64_t end, void* context) {
    const Packing& p = *static_cast<const Packing*>(context);
    constexpr int64_t kDepth = kTileDepth<Factor>, kTogether = 4 / sizeof(Factor);
    const TileGroups groups(p.c_out);
    const int64_t row = p.kernel * p.c_in, taps = p.kernel * p.kernel;
    const int64_t chunks = tile_steps(p.c_in, p.kernel, sizeof(Factor)) / p.kernel;
    for (int64_t g = begin; g < end; ++g) {
      Factor* to = p.packed + groups.first(g) * p.kernel * chunks * (kTileBytes / sizeof(Factor));
      for (int64_t ky = 0; ky < p.kernel; ++ky)
        for (int64_t first = 0; first < chunks * kDepth; first += kDepth)
          for (int64_t t = 0; t < groups.width(g); ++t)
            for (int64_t few = first; few < first + kDepth; few += kTogether)
              for (int64_t o = 16 * (groups.first(g) + t), last = o + 16; o < last; ++o)
                for (int64_t e = few; e < few + kTogether; ++e)
                  *to++ = e < row && o < p.c_out
                              ? factor_of(p.weight[(o * p.c_in + e % p.c_in) * taps + ky * p.kernel + e / p.c_in])
                              : Factor{};
    }
  }
  void run() { parallel_for(TileGroups(c_out).count(), 1, pack, this); }
};

}  // namespace

int64_t tiled_weight_bytes(int64_t c_out, int64_t c_in, int kernel, int64_t size) {
  return checked_product(TileGroups(c_out).tiles, tile_steps(c_in, kernel, size), kTileBytes);
}

void pack_tiles(const float* weight, int64_t c_out, int64_t c_in, int kernel, char* packed) {
  Packing<float>{weight, c_out, c_in, kernel, reinterpret_cast<BFloat16*>(packed)}.run();
}

void pack_tiles(const int8_t* weight, int64_t c_out, int64_t c_in, int kernel, char* packed) {
  Packing<int8_t>{weight, c_out, c_in, kernel, reinterpret_cast<int8_t*>(packed)}.run();
}

}  // namespace hrnet_fast
