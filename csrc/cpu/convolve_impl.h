// What planned networks need of one instruction set. Included inside its namespace, after exchange_impl.h.
#include "quads_avx512.h"
#include "winograd.h"
#include "direct.h"
#include "convolve.h"
