#define XXH_VECTOR 0 /* XXH_SCALAR, which xxhash.h defines */
#define NAMED(name) name##_scalar
#include "xxh3_build.h"
