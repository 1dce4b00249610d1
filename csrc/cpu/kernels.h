// The kernels of one instruction set for one dtype of features. Each pair is an object file of its
// own, so that they compile side by side.
#pragma once
#include "../core/half.h"
#include "../core/params.h"

namespace gatkernels {

struct Kernels {
  Status (*node_scores)(const NodeScores&);
  // With `to`, the attention weights of a forward whose statistics it holds, and nothing else.
  Status (*gat_forward)(const GatForward&, const AlphaOut* to);
  Status (*gat_backward)(const GatBackward&);
  Status (*gatv2_forward)(const Gatv2Forward&, const AlphaOut* to);
  Status (*gatv2_backward)(const Gatv2Backward&);
  // For float32 and float64 alone, null for others.
  Status (*sparse_product)(const SparseProduct&);
  Status (*sparse_transposed_product)(const SparseTransposedProduct&);
  Status (*feature_dropout)(const FeatureDropout&);
};

namespace baseline {
template <class T>
Kernels kernels();
}
#if defined(__x86_64__)
namespace avx2 {
template <class T>
Kernels kernels();
}
namespace avx512 {
template <class T>
Kernels kernels();
}
#endif

}  // namespace gatkernels
