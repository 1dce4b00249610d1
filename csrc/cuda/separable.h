// Separable scores, GAT's: s_e = score_src[j] + score_dst[i] + edge_score[e] of one head.
#pragma once
#include "rows.h"

namespace gatkernels {
namespace cuda {

template <class A>
struct GatScorer {
  const A* src;
  int64_t src_stride;
  const A* dst;
  int64_t dst_stride;
  const A* edge;  // or null
  int64_t heads;
  A slope;

  GK_DEVICE GatScorer(const GatScores& scores, int heads_, int head)
      : src(static_cast<const A*>(scores.src.data) + head),
        src_stride(scores.src.stride),
        dst(static_cast<const A*>(scores.dst.data) + head),
        dst_stride(scores.dst.stride),
        edge(scores.edge ? static_cast<const A*>(scores.edge) + head : nullptr),
        heads(heads_),
        slope(A(scores.negative_slope)) {}

  GK_DEVICE A src_of(int64_t node) const { return __ldg(src + node * src_stride); }
  GK_DEVICE A dst_of(int64_t node) const { return __ldg(dst + node * dst_stride); }
  // ends: the sum of the two nodes' scores
  GK_DEVICE A score(A ends, int32_t id) const {
    return edge ? ends + __ldg(edge + int64_t(id) * heads) : ends;
  }
  GK_DEVICE A logit(A s) const { return s > A(0) ? s : slope * s; }
  GK_DEVICE A logit_slope(A s) const { return s > A(0) ? A(1) : slope; }
};

}  // namespace cuda
}  // namespace gatkernels
