// The CPU kernels against loops in float64, without torch: what can be run for another processor in an emulator.
//
//   program FIRST COUNT float32 float64 bfloat16 float16   seeds FIRST .. FIRST + COUNT - 1, and the tolerances
//
// All instruction sets that the processor has are tested; their names are printed first.
#include <cstdlib>
#include <exception>
#include <thread>

#include "../../../csrc/cpu/problem.h"
#include "../../../csrc/cpu/runtime.h"
#include "support.h"

namespace hrnet_fast {

double tolerances[4];

namespace {
int threads = 1;
}

int num_threads() { return threads; }

// In place of torch's pool: threads that come and go.
void parallel_for(int64_t count, int64_t grain, Body body, void* context) {
  if (count <= 0) return;
  const int64_t tasks = std::min<int64_t>(threads, (count + grain - 1) / grain);
  std::vector<std::thread> others;
  for (int64_t t = 1; t < tasks; ++t)
    others.emplace_back([=] { body(count * t / tasks, count * (t + 1) / tasks, context); });
  body(0, count / tasks, context);
  for (std::thread& other : others) other.join();
}

From from_of(Mode mode, int64_t out, int64_t in_size, int64_t out_size) {
  if (in_size == out_size) return {out, out, 1, 0};
  if (mode == Mode::kNearest) {
    const float scale = static_cast<float>(in_size) / static_cast<float>(out_size);
    const int64_t i = std::min(in_size - 1, static_cast<int64_t>(scale * static_cast<float>(out)));
    return {i, i, 1, 0};
  }
  const double in = static_cast<double>(in_size), size = static_cast<double>(out_size), o = static_cast<double>(out);
  double at = mode == Mode::kBilinear ? in / size * (o + 0.5) - 0.5 : out_size > 1 ? (in - 1) / (size - 1) * o : 0;
  at = std::min(std::max(at, 0.0), in - 1);
  const int64_t i0 = static_cast<int64_t>(at);
  const double w1 = at - static_cast<double>(i0);
  return {i0, std::min(i0 + 1, in_size - 1), 1 - w1, w1};
}

namespace {

struct Test {
  const char* name;
  void (*run)(const InstructionSet&, Random&);
};
constexpr Test kTests[] = {{"exchange", test_exchange},
                           {"backward", test_backward},
                           {"norm", test_norm},
                           {"argmax", test_argmax},
                           {"convolutions", test_convolutions},
                           {"conversions", test_conversions},
                           {"tiled convolution", test_tiled_convolution},
                           {"tiled exchange", test_tiled_exchange},
                           {"tiled layouts", test_tiled_layouts}};

int run(int argc, char** argv) {
  if (argc != 7) throw Failure("expected FIRST COUNT and four tolerances");
  const int64_t first = std::atoll(argv[1]), count = std::atoll(argv[2]);
  for (int i = 0; i < 4; ++i) tolerances[i] = std::atof(argv[3 + i]);
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // what was found is there even after a crash
  std::printf("%s\n", cpu_capabilities().c_str());
  int failures = 0;
  for (const InstructionSet& set : instruction_sets())
    for (const Test& test : kTests)
      for (int64_t seed = first; set.supported() && seed < first + count; ++seed) try {
          Random random(static_cast<uint64_t>(seed));
          threads = static_cast<int>(random.between(1, 3));
          test.run(set, random);
        } catch (const std::exception& error) {
          std::printf("%s, %s, seed %lld: %s\n", set.name, test.name, static_cast<long long>(seed), error.what());
          ++failures;
        }
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace hrnet_fast

int main(int argc, char** argv) { return hrnet_fast::run(argc, argv); }
