// Operations on tiles that depend on each other, run by all threads together without waiting for each other's ends.
#pragma once

#include <vector>

#include "tiled.h"

namespace hrnet_fast {

class TiledGraph {
 public:
  struct Dependency {
    int64_t on;  // an operation that was added before
    bool rows;  // on its rows around those that are computed, in proportion to the heights; else on all of it
  };
  void add(const TiledConvolution& q, std::vector<Dependency> after);
  void add(const TiledExchange& q, std::vector<Dependency> after);
  void add(const Reorder& q, std::vector<Dependency> after);
  void add(const Restore& q, std::vector<Dependency> after);
  bool has_bytes() const;  // whether anything is multiplied in bytes
  int64_t size() const { return static_cast<int64_t>(operations_.size()); }
  // Throws what a task has thrown. What each operation took of the threads' time goes to nanoseconds, where that
  // is not null.
  void run(const TiledKernels& kernels, int threads, int64_t* nanoseconds) const;

 private:
  enum class Kind { kConvolution, kExchange, kReorder, kRestore };
  // An operation is cut into pieces of the rows of an image and parts of the output channels.
  struct Operation {
    Kind kind;
    size_t index;  // in the list of its kind
    std::vector<Dependency> after;
    int64_t n, h;
    double work;  // of all of it, in products of tiles
    int64_t row_bytes, weight_bytes, groups;
    int64_t reach;  // rows behind those of the taps that tiles read, and multiply by zeros
  };
  friend class TiledRun;
  std::vector<TiledConvolution> convolutions_;
  std::vector<TiledExchange> exchanges_;
  std::vector<Reorder> reorders_;
  std::vector<Restore> restores_;
  std::vector<Operation> operations_;
};

}  // namespace hrnet_fast
