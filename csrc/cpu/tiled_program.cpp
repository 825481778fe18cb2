#include "tiled_program.h"

#include <torch/csrc/stable/library.h>

#include "problem.h"
#include "runtime.h"
#include "tiled_graph.h"

namespace hrnet_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMostBytes = INT32_MAX / (255 * 127);  // products that a sum of 32 bits holds

Extent extent_of(Reader& in, int64_t most_h = kMaxTiledSide, int64_t most_w = kMaxTiledSide) {
  Extent size;
  size.h = in.next(1, most_h), size.w = in.next(1, most_w);
  checked_product(size.h + 2, size.w + 1, kMaxTiledSide);
  return size;
}

// Channels; the addresses of the numbers, of what their rounding took away, and of what they are in bytes.
Bordered bordered(Reader& in, int64_t n, const Extent& size, Use use = Use::kRead) {
  Bordered image;
  image.channels = in.next(1, kMaxTiledSide);
  const int64_t count = size.span(n, image.channels);
  image.high = reinterpret_cast<BFloat16*>(in.address(count, DType::kBFloat16, use));
  image.low = reinterpret_cast<BFloat16*>(in.address(count, DType::kBFloat16, use));
  image.bytes = in.bytes(count, use);
  STD_TORCH_CHECK(image.low == nullptr || (image.high != nullptr && image.bytes == nullptr),
                  "run_program: half of an image is missing, or it has bytes as well");
  return image;
}
// What is read, of which somebody needs `high`; what is written.
Bordered source(Reader& in, int64_t n, const Extent& size) {
  const Bordered image = bordered(in, n, size);
  STD_TORCH_CHECK(image.high != nullptr, "run_program: an input is missing");
  return image;
}
Bordered output(Reader& in, int64_t n, const Extent& size) {
  const Bordered image = bordered(in, n, size, Use::kWritten);
  STD_TORCH_CHECK(image.high != nullptr || image.bytes != nullptr, "run_program: an output is missing");
  return image;
}

// The bits of a float32, and a byte.
Rounding rounding(Reader& in) {
  Rounding r;
  r.per_unit = bit_cast<float>(static_cast<uint32_t>(in.next(0, UINT32_MAX)));
  r.zero = static_cast<uint8_t>(in.next(0, 255));
  STD_TORCH_CHECK(r.per_unit > 0 && r.per_unit < INFINITY, "run_program: expected a positive number of steps per unit");
  return r;
}

const float* floats(Reader& in, int64_t count) {
  return reinterpret_cast<const float*>(in.address(count, DType::kFloat32));
}

const char* weight_of(Reader& in, int64_t c_out, int64_t c_in, int kernel, bool bytes) {
  const int64_t size = bytes ? 1 : 2, count = tiled_weight_bytes(c_out, c_in, kernel, size) / size;
  return bytes ? reinterpret_cast<const char*>(in.bytes(count)) : in.address(count, DType::kBFloat16);
}

TiledConvolution read_convolution(Reader& in) {
  TiledConvolution q;
  q.n = in.size(), q.in = extent_of(in), q.c_out = in.next(1, kMaxTiledSide);
  q.kernel = static_cast<int>(in.next(1, 3)), q.stride = static_cast<int>(in.next(1, 2));
  q.relu = in.next() != 0;
  const bool bytes = in.next(0, 1) != 0;
  q.sources = static_cast<int>(in.next(1, kMaxSources));
  STD_TORCH_CHECK(q.kernel != 2, "run_program: a convolution that the kernels do not know");
  q.out = {(q.in.h - 1) / q.stride + 1, (q.in.w - 1) / q.stride + 1};
  int64_t products = 0;  // of each sum
  for (int s = 0; s < q.sources; ++s) {
    q.source[s] = bordered(in, q.n, q.in);
    q.weight[s] = weight_of(in, q.c_out, q.source[s].channels, q.kernel, bytes);
    const bool there = bytes ? q.source[s].bytes != nullptr : q.source[s].high != nullptr;
    STD_TORCH_CHECK(there && q.weight[s] != nullptr, "run_program: an input is missing");
    products += q.source[s].channels * q.kernel * q.kernel;
  }
  q.output = output(in, q.n, q.out);
  q.residual = bordered(in, q.n, q.out, Use::kReadAndReplaced);
  q.bias = floats(in, q.c_out);
  q.scale = floats(in, q.c_out);
  q.rounding = rounding(in);
  STD_TORCH_CHECK((q.scale != nullptr) == bytes && !(bytes && (q.output.low != nullptr || products > kMostBytes)),
                  "run_program: bytes that cannot be multiplied");
  STD_TORCH_CHECK(q.residual.low == nullptr || q.output.bytes == nullptr,
                  "run_program: bytes of what is added to with more bits");
  STD_TORCH_CHECK(q.output.channels == q.c_out && q.residual.channels == q.c_out,
                  "run_program: a convolution's residual is not like its output");
  STD_TORCH_CHECK(q.bias != nullptr, "run_program: data is missing");
  return q;
}

TiledExchange read_exchange(Reader& in) {
  TiledExchange q;
  q.mode = static_cast<Mode>(in.next(0, 2));
  q.relu = in.next() != 0;
  const bool bytes = in.next(0, 1) != 0;
  int64_t products = 0;
  q.n = in.size(), q.out = extent_of(in), q.channels = in.next(1, kMaxTiledSide);
  q.count = static_cast<int>(in.next(1, kMaxInputs));
  for (int j = 0; j < q.count; ++j) {
    q.size[j] = extent_of(in, q.out.h, q.out.w);
    q.input[j] = bordered(in, q.n, q.size[j]);
    q.weight[j] = weight_of(in, q.channels, q.input[j].channels, 1, bytes);
    const bool same = q.size[j].h == q.out.h && q.size[j].w == q.out.w;
    const bool multiplied = bytes && q.weight[j] != nullptr;
    products += q.input[j].channels;
    STD_TORCH_CHECK((multiplied ? q.input[j].bytes != nullptr : q.input[j].high != nullptr) &&
                        (q.weight[j] ? same : q.input[j].channels == q.channels),
                    "run_program: an input without a weight has other channels, or a smaller one has a weight");
  }
  q.bias = floats(in, q.channels);
  q.scale = floats(in, q.channels);
  q.output = output(in, q.n, q.out);
  q.rounding = rounding(in);
  STD_TORCH_CHECK((q.scale != nullptr) == bytes && products <= kMostBytes,
                  "run_program: bytes that cannot be multiplied");
  const int64_t depth = kTileDepth<BFloat16>;
  q.projection = weight_of(in, q.output.channels, (q.channels + depth - 1) / depth * depth, 1, false);
  q.projection_bias = floats(in, q.output.channels);
  STD_TORCH_CHECK(q.projection ? q.projection_bias != nullptr : q.output.channels == q.channels,
                  "run_program: an exchange's output has other channels");
  return q;
}

Reorder read_reorder(Reader& in) {
  Reorder q;
  q.n = in.size(), q.size = extent_of(in);
  q.from = in.planes(q.n, q.size.h, q.size.w);
  q.to = output(in, q.n, q.size);
  q.rounding = rounding(in);
  q.scale = floats(in, q.to.channels), q.shift = floats(in, q.to.channels);
  STD_TORCH_CHECK(
      q.from.data != nullptr && q.from.channels == q.to.channels && (q.scale == nullptr) == (q.shift == nullptr),
      "run_program: an image and what it becomes are not alike");
  return q;
}

Restore read_restore(Reader& in) {
  Restore q;
  q.n = in.size(), q.size = extent_of(in);
  q.from = source(in, q.n, q.size);
  q.to = in.planes(q.n, q.size.h, q.size.w, Use::kWritten);
  STD_TORCH_CHECK(q.to.data != nullptr && q.from.channels == q.to.channels && q.to.dtype != DType::kFloat16,
                  "run_program: an image and what it becomes are not alike");
  return q;
}

int64_t packed_tiles_size(int64_t c_out, int64_t c_in, int64_t kernel, bool bytes) {
  STD_TORCH_CHECK(
      c_out >= 1 && c_out <= kMaxTiledSide && c_in >= 1 && c_in <= kMaxTiledSide && (kernel == 1 || kernel == 3),
      "pack_tiles: the kernels know no convolution of weights [", c_out, ", ", c_in, ", ", kernel, ", ", kernel, "]");
  return tiled_weight_bytes(c_out, c_in, static_cast<int>(kernel), bytes ? 1 : 2);
}

void pack_tiles_op(Tensor weight, Tensor packed) {
  const bool bytes = weight.scalar_type() == ScalarType::Char;
  STD_TORCH_CHECK(weight.dim() == 4 && (bytes || weight.scalar_type() == ScalarType::Float) && weight.is_contiguous() &&
                      weight.size(2) == weight.size(3) && (weight.size(2) == 1 || weight.size(2) == 3) &&
                      weight.is_cpu() && packed.is_cpu() && packed.is_contiguous() &&
                      packed.scalar_type() == ScalarType::Byte && weight.numel() > 0,
                  "pack_tiles: expected dense weights [c_out, c_in, k, k] in float32 or int8, k of 1 or 3, and bytes");
  const int kernel = static_cast<int>(weight.size(2));
  const int64_t c_out = weight.size(0), c_in = weight.size(1);
  const int64_t size = packed_tiles_size(c_out, c_in, kernel, bytes);
  STD_TORCH_CHECK(packed.numel() == size, "pack_tiles: expected room for ", size, " bytes");
  const void* from = read_from(weight);
  char* to = static_cast<char*>(write_to(packed));
  check_apart(dense_blocks(packed), dense_blocks(weight));
  if (bytes)
    pack_tiles(static_cast<const int8_t*>(from), c_out, c_in, kernel, to);
  else
    pack_tiles(static_cast<const float*>(from), c_out, c_in, kernel, to);
}
bool has_tiles() { return multiplies_tiles(); }
bool has_bytes() { return multiplies_bytes(); }

}  // namespace

void tiled_step(Reader& in, bool run, int64_t* nanoseconds) {
  TiledGraph graph;
  for (int64_t count = in.size(); graph.size() < count;) {
    const int64_t kind = in.next(0, 3);
    std::vector<TiledGraph::Dependency> after(static_cast<size_t>(in.next(0, graph.size())));
    for (auto& dependency : after) dependency.on = in.next(0, graph.size() - 1), dependency.rows = in.next(0, 1) != 0;
    switch (kind) {
      case 0: graph.add(read_convolution(in), std::move(after)); break;
      case 1: graph.add(read_exchange(in), std::move(after)); break;
      case 2: graph.add(read_reorder(in), std::move(after)); break;
      default: graph.add(read_restore(in), std::move(after));
    }
    in.end_operation();
    in.check_accesses();
  }
  if (run) graph.run(tiled_kernels(graph.has_bytes()), num_threads(), nanoseconds);
}

}  // namespace hrnet_fast

STABLE_TORCH_LIBRARY_FRAGMENT(hrnet_fast, m) {
  m.def("pack_tiles(Tensor weight, Tensor(a!) packed) -> ()");
  m.def("packed_tiles_size(int c_out, int c_in, int kernel, bool bytes) -> int");
  m.def("has_tiles() -> bool");
  m.def("has_bytes() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(hrnet_fast, CPU, m) { m.impl("pack_tiles", TORCH_BOX(hrnet_fast::pack_tiles_op)); }

STABLE_TORCH_LIBRARY_IMPL(hrnet_fast, CompositeExplicitAutograd, m) {
  m.impl("packed_tiles_size", TORCH_BOX(hrnet_fast::packed_tiles_size));
  m.impl("has_tiles", TORCH_BOX(hrnet_fast::has_tiles));
  m.impl("has_bytes", TORCH_BOX(hrnet_fast::has_bytes));
}
