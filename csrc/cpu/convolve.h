// Convolutions that do not depend on each other, cut into tasks for all threads together: the branches of an HRNet are
// of equal work and unequal shape, and a thread that has ended its share of one goes on with another. Included inside
// the namespace of one instruction set.

template <class Q>
class Convolve {
  struct Cut {  // one convolution's tasks
    const Convolution* q;
    int64_t count;
    int64_t size, pieces, parts;  // Winograd: registers of tiles of a task; parts of the output channels
    int64_t rows, columns, down, across;  // direct: of a task, and tasks of an image
    double cost;  // of a task, in multiplications
  };

 public:
  static void run(const Convolution* convolutions, int count) {
    Convolve group;
    double total = 0;
    for (int i = 0; i < count; ++i) total += work(convolutions[i]);
    const int threads = num_threads();
    for (int i = 0; i < count; ++i) {  // the longest tasks first
      const Cut cut = cut_of(convolutions[i], total / threads);
      int at = group.cuts_++;
      for (; at > 0 && group.cut_[at - 1].cost < cut.cost; --at) group.cut_[at] = group.cut_[at - 1];
      group.cut_[at] = cut;
      group.tasks_ += cut.count;
    }
    if (threads == 1 || group.tasks_ == 1) return group.work_off();
    parallel_for(threads, 1, [](int64_t, int64_t, void* self) { static_cast<Convolve*>(self)->work_off(); }, &group);
  }

 private:
  Cut cut_[kMaxConvolutions];
  int cuts_ = 0;
  int64_t tasks_ = 0, next_ = 0;

  void work_off() {
    for (;;) {
      int64_t task = __atomic_fetch_add(&next_, 1, __ATOMIC_RELAXED);
      if (task >= tasks_) return;
      int i = 0;
      while (task >= cut_[i].count) task -= cut_[i++].count;
      const Cut& c = cut_[i];
      switch (tile_of(c.q->algorithm)) {
        case 4: winograd<4>(c, task); break;
        case 2: winograd<2>(c, task); break;
        default: direct(c, task);
      }
    }
  }

#ifdef HRNET_FAST_HAS_BF16_INSTRUCTIONS
  static constexpr bool kPairs = true;
#else
  static constexpr bool kPairs = false;
#endif

  template <int M>
  static void winograd(const Cut& c, int64_t task) {
    if constexpr (kPairs)
      if (has_pairs(c.q->algorithm)) return winograd_task<Winograd<Q, M, true>>(c, task);
    winograd_task<Winograd<Q, M>>(c, task);
  }
  static void direct(const Cut& c, int64_t task) {
    if constexpr (kPairs)
      if (has_pairs(c.q->algorithm)) return direct_task<Direct<Q, true>>(c, task);
    direct_task<Direct<Q>>(c, task);
  }

  template <class W>
  static void winograd_task(const Cut& c, int64_t task) {
    const int64_t piece = task / c.parts, part = task % c.parts, blocks = ceil_div(c.q->c_out, kChannelBlock);
    const int64_t all = W::vectors(*c.q), first = piece * all / c.pieces, last = (piece + 1) * all / c.pieces;
    W::run(*c.q, first, static_cast<int>(last - first), blocks * part / c.parts, blocks * (part + 1) / c.parts);
  }

  template <class D>
  static void direct_task(const Cut& c, int64_t task) {
    const int64_t part = task % c.parts, tile = task / c.parts, image = tile / (c.down * c.across);
    const int64_t y = tile / c.across % c.down * c.rows, x = tile % c.across * c.columns;
    const int64_t height = D::height(*c.q), width = D::width(*c.q), blocks = ceil_div(c.q->c_out, kChannelBlock);
    D::run(*c.q, image, y, y + c.rows < height ? y + c.rows : height, x, x + c.columns < width ? x + c.columns : width,
           blocks * part / c.parts, blocks * (part + 1) / c.parts);
  }

  // Multiplications, and for Winograd what the transforms add to them (Q::kCosts).
  static double work(const Convolution& q) {
    const double pairs = static_cast<double>(q.c_in) * q.c_out / (has_pairs(q.algorithm) ? 2 : 1);
    const double channels = static_cast<double>(q.c_in + q.c_out);
    switch (tile_of(q.algorithm)) {
      case 4: return double{Q::L} * vectors(q) * (36 * pairs + Q::kCosts.transforms4 * channels);
      case 2: return double{Q::L} * vectors(q) * (16 * pairs + Q::kCosts.transforms2 * channels);
      default: return static_cast<double>(q.kernel) * q.kernel * pairs * q.n * q.h_out * q.w_out;
    }
  }
  static int64_t vectors(const Convolution& q) {
    return tile_of(q.algorithm) == 4 ? Winograd<Q, 4>::vectors(q) : Winograd<Q, 2>::vectors(q);
  }
  template <bool PAIRS>
  static int64_t block(const Convolution& q) {
    return tile_of(q.algorithm) == 4 ? Winograd<Q, 4, PAIRS>::block(q) : Winograd<Q, 2, PAIRS>::block(q);
  }

  static Cut cut_of(const Convolution& q, double share) {
    return is_winograd(q.algorithm) ? cut_winograd(q, share) : cut_direct(q, share);
  }

  static Cut cut_winograd(const Convolution& q, double share) {
    const int64_t all = vectors(q), blocks = ceil_div(q.c_out, kChannelBlock);
    int64_t block = has_pairs(q.algorithm) ? Convolve::block<kPairs>(q) : Convolve::block<false>(q);
    const double each = work(q) / static_cast<double>(all);
    while (block > 1 && each * static_cast<double>(block) > share) --block;
    const int64_t pieces = ceil_div(all, block);
    // too few tiles for the threads: the channels are shared out, and each part transforms the inputs again
    const double cost = work(q) / static_cast<double>(pieces);
    const int64_t wanted = static_cast<int64_t>(cost / share + 0.99);
    const int64_t parts = wanted < 1 ? 1 : wanted > blocks ? blocks : wanted;
    return {&q, pieces * parts, block, pieces, parts, 0, 0, 0, 0, cost / static_cast<double>(parts)};
  }

  static Cut cut_direct(const Convolution& q, double share) {
    using D = Direct<Q>;
    constexpr int64_t kPanelBytes = Q::kPanelBytes;
    const int64_t height = D::height(q), width = D::width(q), blocks = ceil_div(q.c_out, kChannelBlock);
    const double pixel = work(q) / (static_cast<double>(q.n) * height * width);
    int64_t columns = width, rows = height;
    // Each task reads the weights of its channels. Of small images with many channels these are more than the pixels:
    // then the channels are shared out, and each task copies the same panel.
    const int64_t weights = q.c_out * q.c_in * q.kernel * q.kernel * static_cast<int64_t>(sizeof(float));
    const bool by_channel =
        weights > D::panel_bytes(q, rows, columns) && D::panel_bytes(q, rows, columns) < 2 * kPanelBytes;
    const auto large = [&] {
      if (by_channel) return false;
      return D::panel_bytes(q, rows, columns) > kPanelBytes || pixel * rows * columns > share / 2;
    };
    while (rows > 1 && large()) rows = (rows + 1) / 2;
    while (columns > 4 * Q::L && large()) columns = round_up(columns / 2, 4 * Q::L);
    const int64_t down = ceil_div(height, rows), across = ceil_div(width, columns);
    const double cost = pixel * rows * columns;
    const int64_t wanted = static_cast<int64_t>((by_channel ? 2 : 1) * cost / share + 0.5);
    const int64_t parts = wanted < 1 ? 1 : wanted > blocks ? blocks : wanted;
    return {&q, q.n * down * across * parts, 0, 0, parts, rows, columns, down, across, cost / parts};
  }
};
