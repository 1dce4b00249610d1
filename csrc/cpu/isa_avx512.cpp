#define GK_ISA avx512
#include "simd_avx512.h"
// after the vectors it is written in
#include "instantiate.h"

namespace gatkernels {

Kernels avx512_kernels() {
  return {"avx512", avx512::forward_of, avx512::alpha_of, avx512::backward_of};
}

}  // namespace gatkernels
