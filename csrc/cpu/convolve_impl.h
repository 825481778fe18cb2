// What planned networks need of one instruction set. Included inside its namespace, after exchange_impl.h and its
// tiles.
#include "convolve_common.h"
#include "winograd.h"
#include "direct.h"
#include "convolve.h"
