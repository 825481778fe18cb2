// What the kernels of all devices share. No torch header is included below this line of the tree.
#pragma once

namespace hrnet_fast {

constexpr int kMaxInputs = 8;

enum class DType { kFloat32, kFloat64, kBFloat16, kFloat16 };
enum class Mode { kNearest, kBilinear, kBilinearAlignCorners };

}  // namespace hrnet_fast
