#define GK_ISA avx512
#include "simd_avx512.h"
// after the vectors it is written in
#include "instantiate.h"
