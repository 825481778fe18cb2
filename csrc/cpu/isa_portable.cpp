// Kernels for any CPU: vectors of four floats by the compiler's extension.
#include "isa.h"

namespace hrnet_fast {
namespace portable {
#include "exchange_impl.h"
#include "every_dtype.h"

extern constexpr Kernels kernels = EveryDType<VecGeneric<float, 4>, VecGeneric<double, 2>>::kernels();
}  // namespace portable
}  // namespace hrnet_fast
