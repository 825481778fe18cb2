// The kernels on tiles for any CPU, on arrays: slow, and bit by bit what the instructions of AMX compute.
#include "isa.h"

namespace hrnet_fast {
namespace emulated {
#include "exchange_impl.h"
#include "tiles_emulated.h"
#include "convolve_common.h"
#include "tiled_impl.h"
}  // namespace emulated

const TiledKernels tiled_emulated =
    emulated::TiledTasks<emulated::TileBlocks<emulated::EmulatedTiles>, emulated::VecGeneric<float, 16, true>>::kernels;

}  // namespace hrnet_fast
