// Products of bytes and of bfloat16 for aarch64 with BF16 and I8MM (Neoverse V1 and N2, Apple M2 and later).
#include "../isa.h"
#include "target.h"

HRNET_FAST_TARGET_BEGIN(HRNET_FAST_MATRIX_TARGET)
namespace hrnet_fast {
namespace neon_matrix {
#include "vec_neon.h"
#include "../exchange_impl.h"
#include "../convolve_common.h"
#include "../tiled_impl.h"
#include "../vector_blocks.h"
#include "dots_neon.h"
#include "matrix_blocks.h"
#include "../vec_pair.h"

// The bits of programs with bytes are those of all instruction sets: what they have in bfloat16 is added up like there.
struct ByteBlocks : MatrixBlocks {
  template <class E, int MT, int NT, class Between>
  static void multiply(const TileSource<MT>* sources, int count, const TileTarget& t, Between between) {
    using Blocks = std::conditional_t<sizeof(E) == 1, MatrixBlocks, VectorBlocks<DotsNeon>>;
    Blocks::template multiply<E, MT, NT>(sources, count, t, between);
  }
};

static constexpr Kernels all() {
  using Sixteen = VecPair<VecPair<VecNeon>>;
  Kernels k;
  k.tiled = &TiledTasks<ByteBlocks, Sixteen>::kernels;
  k.tiled_bfloat16 = &TiledTasks<MatrixBlocks, Sixteen>::kernels;
  return k;
}
extern constexpr Kernels kernels = all();
}  // namespace neon_matrix
}  // namespace hrnet_fast
HRNET_FAST_TARGET_END
