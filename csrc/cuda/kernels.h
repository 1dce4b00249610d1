// The launchers: they take the contract's parameters and a plan, and return CUDA's error code. T is
// the dtype of features, A that of sums.
#pragma once
#include "plan.h"

namespace gatkernels {
namespace cuda {

template <class T>
cudaError_t node_scores(const NodeScores&, const Plan&);
template <class T>
cudaError_t gat_forward(const GatForward&, const Plan&);
template <class A>
cudaError_t gat_alpha(const GatAlpha&, const Plan&);
template <class T>
cudaError_t gat_destinations(const GatDestinations&, const Plan&);
template <class T>
cudaError_t gat_sources(const GatSources&, const Plan&);
// The end of gat_sources where scores came from features: grad_x += what comes through them, and
// grad_att.
template <class T>
cudaError_t node_score_gradients(const GatSources&, const Plan&);
template <class T>
cudaError_t rowwise_forward(const RowwiseForward&, const Plan&);
template <class T>
cudaError_t rowwise_alpha(const RowwiseAlpha&, const Plan&);
template <class T>
cudaError_t rowwise_destinations(const RowwiseDestinations&, const Plan&);
template <class T>
cudaError_t rowwise_sources(const RowwiseSources&, const Plan&);
template <class T>
cudaError_t dot_forward(const DotForward&, const Plan&);
template <class T>
cudaError_t dot_alpha(const DotAlpha&, const Plan&);
template <class T>
cudaError_t dot_destinations(const DotDestinations&, const Plan&);
template <class T>
cudaError_t dot_sources(const DotSources&, const Plan&);

}  // namespace cuda
}  // namespace gatkernels
