#define GK_ISA avx2
#include "simd_avx2.h"
// after the vectors it is written in
#include "instantiate.h"

namespace gatkernels {

Kernels avx2_kernels() { return avx2::table("avx2"); }

}  // namespace gatkernels
