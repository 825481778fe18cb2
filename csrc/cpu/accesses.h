// What the operations of a program read and write at the same time: nothing may be written where others read or write.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <vector>

namespace hrnet_fast {

enum class Use {
  kRead,
  kReadAndReplaced,  // read where its own operation may write, each number just before
  kWritten,
};

// `count` blocks of memory, `step` bytes from one to the next.
struct Blocks {
  const char* begin;
  int64_t bytes, step = 0, count = 1;

  const char* end() const { return begin + (count - 1) * step + bytes; }
  bool operator==(const Blocks& b) const {
    return begin == b.begin && bytes == b.bytes && count == b.count && (step == b.step || count == 1);
  }
};

inline bool overlap(const Blocks& a, const Blocks& b) {
  if (a.bytes == 0 || b.bytes == 0 || a.begin >= b.end() || b.begin >= a.end()) return false;
  if (a.count == 1 && b.count == 1) return true;
  if (a.count > 1 && b.count > 1 && a.step != b.step) return true;  // no program has blocks in between
  const int64_t step = a.count > 1 ? a.step : b.step, behind = b.begin - a.begin;
  // Block j of b lies behind + (j - i) * step bytes after block i of a: is that between -b.bytes and a.bytes for a
  // pair?
  const auto floor = [step](int64_t x) { return x / step - (x % step < 0); };
  int64_t least = floor(-b.bytes - behind) + 1, most = -floor(behind - a.bytes) - 1;
  if (least < 1 - a.count) least = 1 - a.count;
  if (most > b.count - 1) most = b.count - 1;
  return least <= most;
}

inline void check_apart(const Blocks& written, const Blocks& other) {
  STD_TORCH_CHECK(!overlap(written, other), "hrnet_fast: what is written overlaps what is read or written beside it");
}

class Accesses {
 public:
  void end_operation() { ++operation_; }
  void add(const Blocks& blocks, Use use) {
    (use == Use::kWritten ? written_ : read_).push_back({blocks, use, operation_});
  }
  // Of the operations since the last check.
  void check() {
    for (size_t k = 0; k < written_.size(); ++k) {
      const Access& w = written_[k];
      for (size_t other = 0; other < k; ++other) check_apart(w.blocks, written_[other].blocks);
      for (const Access& r : read_) {
        const bool replaced = r.use == Use::kReadAndReplaced && r.operation == w.operation && r.blocks == w.blocks;
        if (!replaced) check_apart(w.blocks, r.blocks);
      }
    }
    written_.clear(), read_.clear();
  }

 private:
  struct Access {
    Blocks blocks;
    Use use;
    int64_t operation;
  };
  std::vector<Access> read_, written_;
  int64_t operation_ = 0;
};

}  // namespace hrnet_fast
