#define GK_ISA baseline
#include "simd_portable.h"
// after the vectors it is written in
#include "instantiate.h"

namespace gatkernels {

Kernels baseline_kernels() { return baseline::table("baseline"); }

}  // namespace gatkernels
