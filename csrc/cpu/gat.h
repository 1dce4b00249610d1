// GAT's scores, and its forward. Names and formulas as in gatkernels/reference.py.
#pragma once
#include "forward.h"

namespace gatkernels {
namespace GK_ISA {

template <class A, int kHeads>
struct GatScorer {
  using V = Vec<A>;
  using Lanes = HeadVectors<A, kHeads>;
  static constexpr int block = kBlock;
  Edges edges;
  int heads;
  const A* src;
  int64_t src_stride;
  const A* dst;
  int64_t dst_stride;
  const A* edge_score;
  V slope;
  const int32_t* col_end;

  template <class Params, class T>
  GatScorer(const Params& p, const HeadMap<A>&, const Gather<T>& x)
      : edges(p.csr),
        heads(int(p.shape.heads)),
        src(static_cast<const A*>(p.scores.src.data)),
        src_stride(p.scores.src.stride),
        dst(static_cast<const A*>(p.scores.dst.data)),
        dst_stride(p.scores.dst.stride),
        edge_score(static_cast<const A*>(p.scores.edge)),
        slope(V::set(A(p.scores.negative_slope))),
        col_end(x.col_end) {}

  V leaky(V s) const { return V::if_positive(s, s, slope * s); }
  V leaky_slope(V s) const { return V::if_positive(s, V::set(A(1)), slope); }

  // s = ends + edge score, for the edges of one vector
  V add_edge(V ends, const int32_t* eid, int h, int count, int lanes) const {
    if (edge_score == nullptr) return ends;
    return ends + V::template load_edges<kHeads>(edge_score + h, heads, eid, count, lanes);
  }
  // Asks for the values at p + col[k] * distance of the edges some way ahead.
  static void prefetch(const A* p, int64_t distance, const int32_t* col, const int32_t* col_end) {
    for (int k = 0; k < Lanes::kEdges; ++k) {
      const int32_t* ahead = col + kScorePrefetch + k < col_end ? col + kScorePrefetch + k : col;
      __builtin_prefetch(p + int64_t(*ahead) * distance);
    }
  }

  // score, weight = leaky(score), top = max(top, weight) for n edges into `row` from `edge` on
  void score(const Lanes& lanes_of, int64_t row, int64_t edge, int n, Scratch<A>& t, A* top,
             bool carry) const {
    const int32_t* col = edges.col + edge;
    const int32_t* eid = edges.eid + edge;
    const A* dst_row = dst + row * dst_stride;
    lanes_of.each_slot([&](int h, int lanes) {
      const V score_dst = lanes_of.repeat(dst_row + h, lanes);
      V best =
          carry ? lanes_of.repeat(top + h, lanes) : V::set(-std::numeric_limits<A>::infinity());
      lanes_of.each_vector(h, n, [&](int at, int e, int count) {
        prefetch(src + h, src_stride, col + e, col_end);
        const V score_src =
            V::template load_edges<kHeads>(src + h, src_stride, col + e, count, lanes);
        const V s = add_edge(score_src + score_dst, eid + e, h, count, lanes);
        const V l = leaky(s);
        best = V::max(best, l);
        s.store(t.score + at);
        l.store(t.weight + at);
      });
      lanes_of.fold_max(best).store(top + h, lanes);
    });
  }
};

template <class T, class A>
static Status gat_forward(const GatForward& p, const AlphaOut* to) {
#define GK_RUN(kHeads)                                                                           \
  return run_forward<A, ForwardJob<T, A, kHeads, GatScorer<A, kHeads>, GatForward>, GatForward>( \
      p, to)
  GK_FOR_SLOT(A, p.shape.heads, GK_RUN)
#undef GK_RUN
}

}  // namespace GK_ISA
}  // namespace gatkernels
