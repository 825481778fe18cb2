#include "tiled_graph.h"

#include <atomic>
#include <algorithm>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>

#include "problem.h"

namespace hrnet_fast {

namespace {

#include "../source.h"

int64_t reach_of(const Extent& size, int64_t channels) { return 1 + kTileRow / (size.pitch() * channels); }
// Bytes of a pixel in all its forms, of the image or of what is written.
int64_t pixel_bytes(const Bordered& x) {
  return x.channels * ((x.high != nullptr ? 2 : 0) + (x.low != nullptr ? 2 : 0) + (x.bytes != nullptr ? 1 : 0));
}

}  // namespace

SourcePixel source_pixel(Mode mode, int64_t out, int64_t in_size, int64_t out_size) {
  if (in_size == out_size) return {out, out, 1, 0};
  const Source<float> s = source_at(mode, out, source_scale<float>(mode, in_size, out_size), in_size);
  return {s.i0, s.i1, s.w0, s.w1};
}

void TiledGraph::add(const TiledConvolution& q, std::vector<Dependency> after) {
  double steps = 0;
  const int64_t size = q.scale != nullptr ? 1 : 2;  // of a factor
  int64_t weights = 0, channels = 0, reach = 0;
  for (int s = 0; s < q.sources; ++s) {
    reach = std::max(reach, reach_of(q.in, q.source[s].channels));
    steps += static_cast<double>(tile_steps(q.source[s].channels, q.kernel, size));
    weights += tiled_weight_bytes(q.c_out, q.source[s].channels, q.kernel, size);
    channels += q.source[s].channels;
  }
  const double strips = static_cast<double>(q.n) * static_cast<double>(q.out.h * q.out.pitch()) / 16;
  const TileGroups groups(q.c_out);
  const int64_t row = q.in.pitch() * q.stride * channels * size + q.out.pitch() * pixel_bytes(q.output);
  operations_.push_back({Kind::kConvolution, convolutions_.size(), std::move(after), q.n, q.out.h,
                         strips * static_cast<double>(groups.tiles) * steps, row, weights, groups.count(), reach});
  convolutions_.push_back(q);
}

void TiledGraph::add(const TiledExchange& q, std::vector<Dependency> after) {
  const double each = static_cast<double>(q.out.w * q.channels) * q.count / 16;  // a vector is about a product
  int64_t reach = 0;
  for (int j = 0; j < q.count; ++j) reach = std::max(reach, reach_of(q.size[j], q.input[j].channels));
  operations_.push_back({Kind::kExchange, exchanges_.size(), std::move(after), q.n, q.out.h,
                         each * static_cast<double>(q.n * q.out.h), 2 * q.out.pitch() * q.channels, 0, 1, reach});
  exchanges_.push_back(q);
}

void TiledGraph::add(const Reorder& q, std::vector<Dependency> after) {
  const double each = static_cast<double>(q.size.w * q.to.channels) / 8;
  operations_.push_back({Kind::kReorder, reorders_.size(), std::move(after), q.n, q.size.h,
                         each * static_cast<double>(q.n * q.size.h), 2 * q.size.pitch() * q.to.channels, 0, 1, 0});
  reorders_.push_back(q);
}

void TiledGraph::add(const Restore& q, std::vector<Dependency> after) {
  const double each = static_cast<double>(q.size.w * q.from.channels) / 8;
  operations_.push_back({Kind::kRestore, restores_.size(), std::move(after), q.n, q.size.h,
                         each * static_cast<double>(q.n * q.size.h), 2 * q.size.pitch() * q.from.channels, 0, 1, 0});
  restores_.push_back(q);
}

// One run of a graph. Each thread has a share of the rows of every operation, the same everywhere, so that it finds in
// its cache what it has computed before. Of what is ready it takes what lies deepest in the network: rows are used
// again before they leave the cache. Only a thread without ready work takes from the others.
class TiledRun {
  struct Cut {
    int64_t pieces, parts, first;  // of an image; of the counters
    int64_t count;  // tasks
  };
  struct Share {  // of an operation's tasks: those of one thread
    int64_t first, count;
    std::atomic<int64_t> next;
  };

 public:
  TiledRun(const TiledGraph& graph, const TiledKernels& kernels, int threads, int64_t* nanoseconds)
      : graph_(graph),
        kernels_(kernels),
        threads_(threads),
        nanoseconds_(nanoseconds),
        cuts_(graph.operations_.size()) {
    int64_t counters = 0;
    for (size_t i = 0; i < cuts_.size(); ++i) {
      cuts_[i] = cut(graph.operations_[i]);
      cuts_[i].first = counters;
      counters += graph.operations_[i].n * cuts_[i].pieces;
      remaining_ += cuts_[i].count;
    }
    done_ = std::vector<std::atomic<int>>(static_cast<size_t>(counters));
    finished_ = std::vector<std::atomic<int64_t>>(cuts_.size());
    shares_ = std::vector<Share>(cuts_.size() * static_cast<size_t>(threads));
    for (size_t i = 0; i < shares_.size(); ++i) {
      const int64_t count = cuts_[i / static_cast<size_t>(threads)].count, thread = i % static_cast<size_t>(threads);
      shares_[i].first = count * thread / threads;
      shares_[i].count = count * (thread + 1) / threads - shares_[i].first;
    }
  }
  void run() {
    if (threads_ == 1) {
      work(0);
    } else {
      parallel_for(
          threads_, 1,
          [](int64_t begin, int64_t end, void* self) {
            for (int64_t t = begin; t < end; ++t) static_cast<TiledRun*>(self)->work(static_cast<int>(t));
          },
          this);
    }
    if (error_) std::rethrow_exception(error_);
  }

 private:
  static constexpr int64_t kBandBytes = 128 << 10;  // of the rows that a task reads and writes
  static constexpr double kLeastWork = 256;  // of a task, in products of tiles: some microseconds
  static constexpr size_t kWindow = 24;  // operations that are looked at

  const TiledGraph& graph_;
  const TiledKernels& kernels_;
  const int threads_;
  int64_t* const nanoseconds_;
  std::vector<Cut> cuts_;
  std::vector<std::atomic<int>> done_;  // parts of a piece
  std::vector<std::atomic<int64_t>> finished_;  // tasks of an operation
  std::vector<Share> shares_;
  std::atomic<int64_t> remaining_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::exception_ptr error_;

  Cut cut(const TiledGraph::Operation& o) const {
    const double least = o.work / static_cast<double>(o.n) / kLeastWork;
    const int64_t most = least < 1 ? 1 : static_cast<int64_t>(least);
    // Small images with many weights: the channels are shared out, so that a weight is read by one thread only.
    if (o.weight_bytes > o.h * o.row_bytes && o.groups > 1) {
      const int64_t parts = std::min<int64_t>({o.groups, most, 4 * threads_});
      return {1, parts, 0, o.n * parts};
    }
    // a task reads all weights: its rows should be no less
    const int64_t bytes = std::max(kBandBytes, o.weight_bytes / 2);
    int64_t pieces = std::min<int64_t>({(o.h * o.row_bytes + bytes - 1) / bytes, most, o.h});
    const int64_t even = (pieces + threads_ - 1) / threads_ * threads_;  // equal shares
    if (even <= most && even <= o.h) pieces = even;
    return {pieces, 1, 0, o.n * pieces};
  }

  void work(int thread) {
    kernels_.begin();
    size_t open = 0;  // operations before it are finished
    try {
      for (int idle = 0; remaining_.load(std::memory_order_acquire) > 0 && !failed_.load(std::memory_order_relaxed);) {
        while (open < cuts_.size() && finished_[open].load(std::memory_order_relaxed) == cuts_[open].count) ++open;
        bool found = take(open, thread);
        for (int other = 1; !found && other < threads_; ++other) found = take(open, (thread + other) % threads_);
        if (found)
          idle = 0;
        else if (++idle > 1000)
          std::this_thread::yield();
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
      failed_ = true;
    }
    kernels_.end();
  }

  // Runs a task of a thread's share, where one is ready.
  bool take(size_t open, int thread) {
    for (size_t i = std::min(open + kWindow, cuts_.size()); i-- > open;) {
      Share& share = shares_[i * static_cast<size_t>(threads_) + static_cast<size_t>(thread)];
      int64_t k = share.next.load(std::memory_order_relaxed);
      if (k >= share.count) continue;
      // Neighbours begin at the border between them, which both need, or end there.
      const int64_t task = share.first + (thread % 2 == 0 ? share.count - 1 - k : k);
      if (!ready(i, task) || !share.next.compare_exchange_strong(k, k + 1, std::memory_order_relaxed)) continue;
      timed(i, task);
      done_[static_cast<size_t>(cuts_[i].first + task / cuts_[i].parts)].fetch_add(1, std::memory_order_release);
      finished_[i].fetch_add(1, std::memory_order_release);
      remaining_.fetch_sub(1, std::memory_order_release);
      return true;
    }
    return false;
  }

  int64_t top(size_t i, int64_t piece) const { return graph_.operations_[i].h * piece / cuts_[i].pieces; }

  bool ready(size_t i, int64_t task) const {
    const TiledGraph::Operation& o = graph_.operations_[i];
    for (const TiledGraph::Dependency& d : o.after)  // most often, and without a division
      if (finished_[static_cast<size_t>(d.on)].load(std::memory_order_relaxed) == 0) return false;
    const int64_t piece = task / cuts_[i].parts, image = piece / cuts_[i].pieces, at = piece % cuts_[i].pieces;
    for (const TiledGraph::Dependency& d : o.after) {
      const size_t on = static_cast<size_t>(d.on);
      const Cut& c = cuts_[on];
      if (finished_[on].load(std::memory_order_acquire) == c.count) continue;
      if (!d.rows) return false;
      const int64_t h = graph_.operations_[on].h;
      // A row of taps more on each side; and the zero to the left of a row lies behind the row above, which writes it.
      int64_t y0 = top(i, at) * h / o.h - 2, y1 = (top(i, at + 1) * h + o.h - 1) / o.h + 2 + o.reach;
      y0 = y0 < 0 ? 0 : y0, y1 = y1 > h ? h : y1;
      const int64_t from = ((y0 + 1) * c.pieces + h - 1) / h - 1, to = (y1 * c.pieces + h - 1) / h;
      for (int64_t p = from; p < to; ++p)
        if (done_[static_cast<size_t>(c.first + image * c.pieces + p)].load(std::memory_order_acquire) < c.parts)
          return false;
    }
    return true;
  }

  void timed(size_t i, int64_t task) const {
    if (nanoseconds_ == nullptr) return compute(i, task);
    const auto start = std::chrono::steady_clock::now();
    compute(i, task);
    const int64_t took = (std::chrono::steady_clock::now() - start) / std::chrono::nanoseconds(1);
    __atomic_fetch_add(nanoseconds_ + i, took, __ATOMIC_RELAXED);
  }

  void compute(size_t i, int64_t task) const {
    const TiledGraph::Operation& o = graph_.operations_[i];
    const Cut& c = cuts_[i];
    const int64_t part = task % c.parts, piece = task / c.parts, image = piece / c.pieces, at = piece % c.pieces;
    const int64_t y0 = top(i, at), y1 = top(i, at + 1);
    switch (o.kind) {
      case TiledGraph::Kind::kConvolution:
        return kernels_.convolve(graph_.convolutions_[o.index], image, y0, y1, o.groups * part / c.parts,
                                 o.groups * (part + 1) / c.parts);
      case TiledGraph::Kind::kExchange: return kernels_.exchange(graph_.exchanges_[o.index], image, y0, y1);
      case TiledGraph::Kind::kReorder: return kernels_.reorder(graph_.reorders_[o.index], image, y0, y1);
      case TiledGraph::Kind::kRestore: return kernels_.restore(graph_.restores_[o.index], image, y0, y1);
    }
  }
};

bool TiledGraph::has_bytes() const {
  const auto in_bytes = [](const auto& q) { return q.scale != nullptr; };
  return std::any_of(convolutions_.begin(), convolutions_.end(), in_bytes) ||
         std::any_of(exchanges_.begin(), exchanges_.end(), in_bytes);
}

void TiledGraph::run(const TiledKernels& kernels, int threads, int64_t* nanoseconds) const {
  if (nanoseconds != nullptr) std::fill_n(nanoseconds, size(), 0);
  TiledRun(*this, kernels, threads, nanoseconds).run();
  for (int64_t i = 0; nanoseconds != nullptr && i < size(); ++i) nanoseconds[i] /= threads;
}

}  // namespace hrnet_fast
