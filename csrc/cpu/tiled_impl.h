// All that runs on tiles. Included inside the namespace of one instruction set, after its tiles and vectors.
#include "tiled_blocks.h"
#include "tiled_convolution.h"
#include "tiled_exchange.h"

template <class Blocks, class V>
struct TiledTasks {
  static void convolve(const TiledConvolution& q, int64_t image, int64_t y0, int64_t y1, int64_t first, int64_t last) {
    if (q.scale != nullptr)
      TiledTask<Blocks, V, uint8_t>(q, image, y0, y1).run(first, last);
    else
      TiledTask<Blocks, V, BFloat16>(q, image, y0, y1).run(first, last);
  }
  static void exchange(const TiledExchange& q, int64_t image, int64_t y0, int64_t y1) {
    TiledExchangeTask<Blocks, V>(q, image).run(y0, y1);
  }
  static constexpr TiledKernels kernels = {Blocks::begin, Blocks::end,     convolve,
                                           exchange,      reorder_rows<V>, restore_rows};
};
