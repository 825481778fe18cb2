// Which algorithm a planned 3x3 convolution of stride 1 takes.
#include <algorithm>

#include "convolution.h"

namespace hrnet_fast {

// What is compared are multiply-adds of registers, those of the transforms, and the reading of the weights, which
// Winograd's has four times (tiles of 4x4) or nearly two times (2x2) of.
Algorithm cheapest(const ConvolutionCosts& costs, int64_t n, int64_t c_out, int64_t h, int64_t w, int64_t c_in,
                   bool pairs, int64_t packed) {
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  // as many multiplications, and bytes of the weights
  const double products = static_cast<double>(c_in * c_out) / (pairs ? 2 : 1);
  const double channels = static_cast<double>(c_in + c_out);
  const auto winograd = [&](int64_t tile, double transforms) {
    const int64_t places = n * ceil_div(h, tile) * ceil_div(w, costs.side * tile);
    const double points = static_cast<double>((tile + 2) * (tile + 2));
    const double registers = static_cast<double>(ceil_div(places * costs.side, costs.lanes));
    return registers * (points * products + transforms * channels) + points * products * costs.reading;
  };
  const double pixels =
      static_cast<double>(n * std::min(h * ceil_div(w, costs.lanes), ceil_div(h * (w + 2), costs.lanes)));
  const double found[] = {9 * products * (pixels * costs.direct_product + costs.reading),
                          winograd(2, costs.transforms2), winograd(4, costs.transforms4)};
  const double best = *std::min_element(found, found + 3);
  int chosen = -1;
  // Weights that are packed already cost no memory and no time: they may lose a tenth.
  for (int a = 2; a >= 0; --a) {
    const bool good = found[a] == best || ((packed >> a & 1) && found[a] <= 1.1 * best);
    const bool better = chosen < 0 || (packed >> a & 1) > (packed >> chosen & 1) ||
                        ((packed >> a & 1) == (packed >> chosen & 1) && found[a] < found[chosen]);
    if (good && better) chosen = a;
  }
  return static_cast<Algorithm>(chosen + (pairs ? static_cast<int>(Algorithm::kDirectPairs) : 0));
}

}  // namespace hrnet_fast
