// Which algorithm a planned 3x3 convolution of stride 1 takes.
#include <algorithm>

#include "convolution.h"

namespace hrnet_fast {

// What is compared are multiply-adds of registers, those of the transforms, and the reading of the weights, which
// Winograd's has four times (tiles of 4x4) or nearly two times (2x2) of.
Algorithm cheapest(const ConvolutionCosts& costs, int64_t n, int64_t c_out, int64_t h, int64_t w, int64_t c_in,
                   bool pairs) {
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
  const int64_t by_row = h * ceil_div(w, costs.lanes), joined = ceil_div(h * (w + 2), costs.lanes);
  const double pixels = static_cast<double>(n * std::min(by_row, joined));
  const double of4 = winograd(4, costs.transforms4), of2 = winograd(2, costs.transforms2);
  const double direct = 9 * products * (pixels * costs.direct_product + costs.reading);
  if (of4 <= of2 && of4 <= direct) return pairs ? Algorithm::kWinograd4Pairs : Algorithm::kWinograd4;
  if (of2 <= direct) return pairs ? Algorithm::kWinograd2Pairs : Algorithm::kWinograd2;
  return pairs ? Algorithm::kDirectPairs : Algorithm::kDirect;
}

}  // namespace hrnet_fast
