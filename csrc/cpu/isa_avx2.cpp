#define GK_ISA avx2
#include "simd_avx2.h"
// after the vectors it is written in
#include "instantiate.h"
