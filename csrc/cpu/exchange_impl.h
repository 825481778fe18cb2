// Everything that one instruction set compiles. Included inside its namespace, after its vectors.
#include "vec_generic.h"
#include "geometry.h"
#include "products.h"
#include "combine.h"
#include "tail.h"
#include "channels_last.h"
#include "planar.h"
#include "backward.h"
