// Weights in the order in which tiles are loaded.
#include <cstring>

#include "problem.h"
#include "tiled.h"

namespace hrnet_fast {
namespace {

struct Packing {
  const float* weight;
  int64_t c_out, c_in;
  int kernel;
  BFloat16* packed;
};

void pack_groups(int64_t begin, int64_t end, void* context) {
  const Packing& p = *static_cast<const Packing*>(context);
  const TileGroups groups(p.c_out);
  const int64_t row = p.kernel * p.c_in, chunks = tile_steps(p.c_in, p.kernel) / p.kernel, taps = p.kernel * p.kernel;
  for (int64_t g = begin; g < end; ++g) {
    BFloat16* to = p.packed + groups.first(g) * p.kernel * chunks * (kTileBytes / 2);
    for (int64_t ky = 0; ky < p.kernel; ++ky)
      for (int64_t first = 0; first < chunks * kTileDepth; first += kTileDepth)
        for (int64_t t = 0; t < groups.width(g); ++t)
          for (int64_t pair = first; pair < first + kTileDepth; pair += 2)
            for (int64_t o = 16 * (groups.first(g) + t), last = o + 16; o < last; ++o)
              for (int64_t e = pair; e < pair + 2; ++e)
                *to++ = e < row && o < p.c_out
                            ? to_bfloat16(p.weight[(o * p.c_in + e % p.c_in) * taps + ky * p.kernel + e / p.c_in])
                            : BFloat16{0};
  }
}

}  // namespace

int64_t tiled_weight_bytes(int64_t c_out, int64_t c_in, int kernel) {
  return checked_product(TileGroups(c_out).tiles, tile_steps(c_in, kernel), kTileBytes);
}

void pack_tiles(const float* weight, int64_t c_out, int64_t c_in, int kernel, char* packed) {
  Packing packing = {weight, c_out, c_in, kernel, reinterpret_cast<BFloat16*>(packed)};
  parallel_for(TileGroups(c_out).count(), 1, pack_groups, &packing);
}

}  // namespace hrnet_fast
