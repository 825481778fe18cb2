// The kernels of csrc/cuda on the host, behind plain C functions for ctypes.
#include "../../../csrc/cuda/gather.h"
#include "../../../csrc/cuda/kernels.h"

using namespace hrnet_fast;
using namespace hrnet_fast::cuda;

namespace {

template <class T, class Product>
void run(Launch& launch, bool channels_last) {
  const Grid grid = plan(launch, channels_last, sizeof(T));
  if (channels_last)
    start(grid.blocks, grid.threads, grid.shared, [&] { exchange_channels_last<Product>(launch); });
  else
    start(grid.blocks, grid.threads, grid.shared, [&] { exchange_planar<T>(launch); });
}

template <class T>
void run(BackwardLaunch& launch, bool channels_last) {
  const Grid grid = plan(launch, channels_last, sizeof(T));
  constexpr int kWidest = 16 / sizeof(T);
  const auto begin = [&](auto kernel) { start(grid.blocks, grid.threads, 0, [&] { kernel(launch); }); };
  if (!channels_last)
    begin(exchange_backward<T, 1, true>);
  else if (launch.vector == 1)
    begin(exchange_backward<T, 1, false>);
  else if (launch.vector == 2)
    begin(exchange_backward<T, 2, false>);
  else if (launch.vector == 4)
    begin(exchange_backward<T, 4, false>);
  else
    begin(exchange_backward<T, kWidest, false>);
}

}  // namespace

extern "C" {

int size_of_launch() { return sizeof(Launch); }
int size_of_backward_launch() { return sizeof(BackwardLaunch); }

void exchange_backward_of(BackwardLaunch* launch, int dtype, int channels_last) {
  if (dtype == 3)
    run<Float16>(*launch, channels_last);
  else if (dtype == 2)
    run<BFloat16>(*launch, channels_last);
  else
    run<float>(*launch, channels_last);
}

// Whether every output position that reads a source position lies in that one's window.
int windows_hold(int mode, int in_size, int out_size) {
  const Mode m = static_cast<Mode>(mode);
  const float scale = source_scale<float>(m, in_size, out_size);
  const int window = output_window(scale, in_size, out_size);
  for (int o = 0; o < out_size; ++o) {
    const auto s = source_in(m, o, scale, in_size, out_size);
    for (const int i : {s.i0, s.i1}) {
      const int first = first_output(m, i, scale, in_size, out_size);
      if (weight_of(s, i) > 0.f && (o < first || o >= first + window)) return 0;
    }
  }
  return 1;
}

// dtype: 0 float32, 2 bfloat16, 3 float16
void exchange(Launch* launch, int dtype, int channels_last, int tf32) {
  if (dtype == 3)
    run<Float16, Halves<Float16>>(*launch, channels_last);
  else if (dtype == 2)
    run<BFloat16, Halves<BFloat16>>(*launch, channels_last);
  else if (tf32)
    run<float, Tf32>(*launch, channels_last);
  else
    run<float, Ieee>(*launch, channels_last);
}

// The sources of all output positions along one axis.
void sources(int mode, int in_size, int out_size, int* i0, int* i1, float* w0, float* w1) {
  const float scale = source_scale<float>(static_cast<Mode>(mode), in_size, out_size);
  for (int o = 0; o < out_size; ++o) {
    const auto s = source_in(static_cast<Mode>(mode), o, scale, in_size, out_size);
    i0[o] = s.i0, i1[o] = s.i1, w0[o] = s.w0, w1[o] = s.w1;
  }
}

// Whether no patch of any tile is larger than what shared memory has for it; returns the pixels of the largest.
int largest_patch(int mode, int low_h, int low_w, int h, int w, int* fits) {
  Output q = {};
  q.count = 1, q.n = 1, q.h = h, q.w = w, q.channels = 8;
  static float weight;
  q.input[0] = {nullptr, &weight, low_h, low_w, 8, 0.f, 0.f, 0};
  int64_t blocks = 0;
  const int shared = plan(q, static_cast<Mode>(mode), true, 2, blocks);
  int largest = 0;
  *fits = 1;
  for (int64_t block = 0; block < blocks; ++block) {
    const Patch p = patch_of(static_cast<Mode>(mode), q.input[0], q, tile_of(q, static_cast<unsigned>(block), kTileW));
    const int pixels = p.rows * p.columns;
    if (pixels > largest) largest = pixels;
    if (pixels * q.pitch * 2 > shared || p.y < 0 || p.x < 0 || p.y + p.rows > low_h || p.x + p.columns > low_w)
      *fits = 0;
  }
  return largest;
}

int64_t channels_last_element(int n, int c, int y, int x, int channels, int h, int w) {
  return image_offset(n, channels, h, w) + channels_last_offset(c, y, x, channels, w);
}
int64_t planar_element(int n, int c, int y, int x, int channels, int h, int w) {
  return image_offset(n, channels, h, w) + planar_offset(c, y, x, h, w);
}

// Tiles and channel blocks of a launch cover every pixel and channel of the output once: counts visits.
void coverage(int n, int channels, int h, int w, int channels_last, int* visits) {
  Output q = {};
  q.n = n, q.h = h, q.w = w, q.channels = channels;
  int64_t blocks = 0;
  plan(q, Mode::kBilinear, channels_last, 2, blocks);
  const int tile_w = channels_last ? kTileW : kPlanarTileW;
  for (int64_t block = 0; block < blocks; ++block) {
    const Tile t = tile_of(q, static_cast<unsigned>(block), tile_w);
    for (int y = t.y; y < smaller(t.y + kTileH, h); ++y)
      for (int x = t.x; x < smaller(t.x + tile_w, w); ++x)
        for (int c = t.c; c < smaller(t.c + q.channel_block, channels); ++c)
          ++visits[channels_last_element(t.n, c, y, x, channels, h, w)];
  }
}
}
