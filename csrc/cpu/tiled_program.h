// The steps of a program that work on tiles.
#pragma once

#include "program_reader.h"

namespace hrnet_fast {

// Operations on tiles, each with what it depends on: reads them, and runs them where `run`. The time that threads spend
// on each is written to nanoseconds, where that is not null.
void tiled_step(Reader& in, bool run, int64_t* nanoseconds);

}  // namespace hrnet_fast
