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
cudaError_t gat_backward(const GatBackward&, const Plan&);
// The end of gat_backward where scores came from features: grad_x += what comes through them, and
// grad_att.
template <class T>
cudaError_t node_score_gradients(const GatBackward&, const Plan&);
template <class T>
cudaError_t rowwise_forward(const RowwiseForward&, const Plan&);
template <class T>
cudaError_t rowwise_alpha(const RowwiseAlpha&, const Plan&);
template <class T>
cudaError_t rowwise_backward(const RowwiseBackward&, const Plan&);

}  // namespace cuda
}  // namespace gatkernels
