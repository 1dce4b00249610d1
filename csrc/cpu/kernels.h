// The kernels of one instruction set, and the choice among them.
#pragma once
#include "../core/params.h"

namespace gatkernels {

struct Kernels {
  const char* isa;
  Status (*gat_forward)(const GatForward&);
  Status (*gat_alpha)(const GatAlpha&);
  Status (*gat_backward)(const GatBackward&);
};

Kernels baseline_kernels();
#if defined(__x86_64__)
Kernels avx2_kernels();
Kernels avx512_kernels();
#endif

}  // namespace gatkernels
