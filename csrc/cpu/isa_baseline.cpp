#define GK_ISA baseline
#include "simd_portable.h"
// after the vectors it is written in
#include "instantiate.h"

namespace gatkernels {

Kernels baseline_kernels() {
  return {"baseline", baseline::forward_of, baseline::alpha_of, baseline::backward_of};
}

}  // namespace gatkernels
