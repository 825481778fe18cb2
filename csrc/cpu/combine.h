// One output row, one panel of channels: everything is added, activated and stored, pixel by pixel (channels-last).
// Included inside the namespace of one instruction set.

template <class A>
struct Tap {  // a horizontal source: pixels and their weights
  int32_t i0, i1;
  A w0, w1;
};

template <class T, class Out, class A>
struct CombineRow {
  const A* bias;               // [channel]
  const A* base;               // [pixel][channel] or null
  const A* up[kMaxInputs];     // [pixel][channel], interpolated by taps [output pixel][ups]
  const Tap<A>* taps;
  Row<T> identity[kMaxInputs];
  Out* out;
  int64_t step, pixels;
  int ups, identities, load_tail, store_tail;
  bool relu;
};

constexpr int64_t kPrefetchBytes = 1024;  // how far ahead of the sum the same-size inputs are asked for

// UPS and IDS are the numbers of smaller and of same-size inputs, or -1: any. Everything that the loop reads is local,
// because the compiler must assume that a store to `out` changes what lies in memory.
template <class V, int NV, int UPS, int IDS, bool BILINEAR, class T, class Out>
static void combine_pixels(const CombineRow<T, Out, typename V::A>& row) {
  using A = typename V::A;
  constexpr int kRoomUps = UPS < 0 ? kMaxInputs : UPS == 0 ? 1 : UPS, kRoomIds = IDS < 0 ? kMaxInputs : IDS;
  const int ups = UPS < 0 ? row.ups : UPS, identities = IDS < 0 ? row.identities : IDS;
  const A* up[kRoomUps];
  for (int u = 0; u < ups; ++u) up[u] = row.up[u];
  const T* identity[kRoomIds];
  int64_t identity_step[kRoomIds];
  for (int i = 0; i < identities; ++i) identity[i] = row.identity[i].p, identity_step[i] = row.identity[i].step;
  V bias[NV];
  for (int v = 0; v < NV; ++v) bias[v] = V::load(row.bias + v * V::L);
  const A* base = row.base;
  const Tap<A>* tap = row.taps;
  Out* out = row.out;
  const int64_t step = row.step, pixels = row.pixels;
  const int load_tail = row.load_tail, store_tail = row.store_tail;
  const bool relu = row.relu;

  for (int64_t x = 0; x < pixels; ++x) {
    V acc[NV];
    for (int v = 0; v < NV; ++v) acc[v] = bias[v];
    if (base) {
      for (int v = 0; v < NV; ++v) acc[v] = acc[v] + V::load(base + v * V::L);
      base += NV * V::L;
    }
    for (int i = 0; i < identities; ++i) {
      for (int v = 0; v < NV - 1; ++v) acc[v] = acc[v] + V::load(identity[i] + v * V::L);
      const T* last = identity[i] + (NV - 1) * V::L;
      acc[NV - 1] = acc[NV - 1] + (load_tail == V::L ? V::load(last) : V::load(last, load_tail));
      for (int v = 0; v < NV; ++v)
        __builtin_prefetch(reinterpret_cast<const char*>(identity[i] + v * V::L) + kPrefetchBytes);
      identity[i] += identity_step[i];
    }
    for (int u = 0; u < ups; ++u, ++tap) {
      const A* a = up[u] + tap->i0 * int64_t{NV * V::L};
      if (BILINEAR) {
        const A* b = up[u] + tap->i1 * int64_t{NV * V::L};
        const V w0 = V::set1(tap->w0), w1 = V::set1(tap->w1);
        for (int v = 0; v < NV; ++v) {
          acc[v] = V::fma(w0, V::load(a + v * V::L), acc[v]);
          acc[v] = V::fma(w1, V::load(b + v * V::L), acc[v]);
        }
      } else {
        for (int v = 0; v < NV; ++v) acc[v] = acc[v] + V::load(a + v * V::L);
      }
    }
    if (relu)
      for (int v = 0; v < NV; ++v) acc[v] = acc[v].relu();
    for (int v = 0; v < NV - 1; ++v) acc[v].store(out + v * V::L);
    if (store_tail == V::L)
      acc[NV - 1].store(out + (NV - 1) * V::L);
    else
      acc[NV - 1].store(out + (NV - 1) * V::L, store_tail);
    out += step;
  }
}

template <class V, int NV, bool BILINEAR, class T, class Out>
static void combine_counts(const CombineRow<T, Out, typename V::A>& row) {
  const bool one = row.identities == 1;
  switch (row.ups) {
    case 1: return one ? combine_pixels<V, NV, 1, 1, BILINEAR>(row) : combine_pixels<V, NV, 1, -1, BILINEAR>(row);
    case 2: return one ? combine_pixels<V, NV, 2, 1, BILINEAR>(row) : combine_pixels<V, NV, 2, -1, BILINEAR>(row);
    case 3: return one ? combine_pixels<V, NV, 3, 1, BILINEAR>(row) : combine_pixels<V, NV, 3, -1, BILINEAR>(row);
    default: return combine_pixels<V, NV, -1, -1, BILINEAR>(row);
  }
}

template <class V, class T, class Out>
static void combine(int vectors, bool bilinear, const CombineRow<T, Out, typename V::A>& row) {
  switch (vectors) {
    case 1: return bilinear ? combine_counts<V, 1, true>(row) : combine_counts<V, 1, false>(row);
    case 2: return bilinear ? combine_counts<V, 2, true>(row) : combine_counts<V, 2, false>(row);
    default: return bilinear ? combine_counts<V, 3, true>(row) : combine_counts<V, 3, false>(row);
  }
}
