// Where an output row or column comes from. Included inside the namespace of one instruction set or device.
//
// The arithmetic is that of torch.nn.functional.interpolate, in its precision, so that the same pixels are picked where
// a coordinate falls on a boundary (ATen/native/UpSample.h).

#ifdef __CUDACC__
#define HRNET_FAST_HOST_DEVICE __host__ __device__
#else
#define HRNET_FAST_HOST_DEVICE
#endif

template <class A, class I = int64_t>
struct Source {  // out = w0 * in[i0] + w1 * in[i1]
  I i0, i1;
  A w0, w1;
};

// Source pixels per output pixel.
template <class A>
static HRNET_FAST_HOST_DEVICE constexpr A source_scale(Mode mode, int64_t in_size, int64_t out_size) {
  if (mode != Mode::kBilinearAlignCorners) return static_cast<A>(in_size) / static_cast<A>(out_size);
  return out_size > 1 ? static_cast<A>(in_size - 1) / static_cast<A>(out_size - 1) : A(0);
}

template <class A, class I>
static HRNET_FAST_HOST_DEVICE constexpr Source<A, I> source_at(Mode mode, I out, A scale, I in_size) {
  const A half = mode == Mode::kBilinear ? A(0.5) : A(0);
  A position = scale * (static_cast<A>(out) + half) - half;
  if (position < A(0)) position = A(0);
  I i0 = static_cast<I>(position);
  if (i0 > in_size - 1) i0 = in_size - 1;
  if (mode == Mode::kNearest) return {i0, i0, A(1), A(0)};
  A w1 = position - static_cast<A>(i0);
  w1 = w1 > A(1) ? A(1) : w1;
  return {i0, i0 + (i0 < in_size - 1 ? 1 : 0), A(1) - w1, w1};
}
