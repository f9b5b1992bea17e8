#define NAMED(name) name##_vector
#include "xxh3_build.h"
