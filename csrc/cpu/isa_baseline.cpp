#define GK_ISA baseline
#include "simd_portable.h"
// after the vectors it is written in
#include "instantiate.h"
