#define GK_ISA avx512
#include "simd_avx512.h"
// after the vectors it is written in
#include "instantiate.h"

namespace gatkernels {

Kernels avx512_kernels() { return avx512::table("avx512"); }

}  // namespace gatkernels
