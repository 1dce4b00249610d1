// The kernels of one instruction set.
#pragma once
#include "../core/params.h"

namespace gatkernels {

struct Kernels {
  const char* isa;
  // With `to`, the attention weights of a forward whose statistics it holds, and nothing else.
  Status (*gat_forward)(const GatForward&, const AlphaOut* to);
  Status (*gat_backward)(const GatBackward&);
  Status (*gatv2_forward)(const Gatv2Forward&, const AlphaOut* to);
  Status (*gatv2_backward)(const Gatv2Backward&);
  Status (*sparse_product)(const SparseProduct&);
  Status (*sparse_transposed_product)(const SparseTransposedProduct&);
  Status (*feature_dropout)(const FeatureDropout&);
};

Kernels baseline_kernels();
#if defined(__x86_64__)
Kernels avx2_kernels();
Kernels avx512_kernels();
#endif

}  // namespace gatkernels
