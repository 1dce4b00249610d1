// The kernels of one instruction set for one dtype of features. Each pair is an object file of its
// own, so that they compile side by side.
#pragma once
#include "../core/half.h"
#include "../core/params.h"

namespace gatkernels {

struct Kernels {
  Status (*node_scores)(const NodeScores&);
  Status (*gat_forward)(const GatForward&);
  Status (*gat_alpha)(const GatAlpha&);
  Status (*gat_destinations)(const GatDestinations&);
  Status (*gat_sources)(const GatSources&);
  Status (*rowwise_forward)(const RowwiseForward&);
  Status (*rowwise_alpha)(const RowwiseAlpha&);
  Status (*rowwise_destinations)(const RowwiseDestinations&);
  Status (*rowwise_sources)(const RowwiseSources&);
  Status (*dot_forward)(const DotForward&);
  Status (*dot_alpha)(const DotAlpha&);
  Status (*dot_destinations)(const DotDestinations&);
  Status (*dot_sources)(const DotSources&);
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
