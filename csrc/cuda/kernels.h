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
cudaError_t gat_alpha(const GatForward&, const AlphaOut&, const Plan&);
template <class T>
cudaError_t gat_backward(const GatBackward&, const Plan&);
// The end of gat_backward where scores came from features: grad_x += what comes through them, and
// grad_att.
template <class T>
cudaError_t node_score_gradients(const GatBackward&, const Plan&);
// With `to`, the attention weights of a forward whose statistics it holds, and nothing else.
template <class T>
cudaError_t gatv2_forward(const Gatv2Forward&, const AlphaOut* to, const Plan&);
template <class T>
cudaError_t gatv2_backward(const Gatv2Backward&, const Plan&);

}  // namespace cuda
}  // namespace gatkernels
