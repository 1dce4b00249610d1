// GATv2's scores, and its forward (Brody et al., 2022): l = sum_c att[c] leaky(x_src + x_dst)[c].
#pragma once
#include "forward.h"

namespace gatkernels {
namespace GK_ISA {

// leaky(x_src + x_dst + edge) of one edge, a vector of features at a time.
template <class T, class A>
struct EdgeSum {
  using V = Vec<A>;
  const T* src;
  const T* dst;
  const T* edge;  // or null

  __attribute__((always_inline)) static V load(const T* p, int lanes) {
    return lanes == V::kWidth ? load_row<A>(p) : V::load(p, lanes);
  }
  __attribute__((always_inline)) V operator()(int64_t f, int lanes) const {
    const V u = load(src + f, lanes) + load(dst + f, lanes);
    return edge ? u + load(edge + f, lanes) : u;
  }
};

template <class T, class A>
struct Gatv2Scorer {
  using V = Vec<A>;
  const HeadMap<A>& map;
  Gather<T> x;
  const T* x_dst;
  int64_t dst_stride;
  const A* att;
  const T* edge_rows;
  V slope;
  int64_t block;  // edges whose rows stay in the first cache between score and sum

  template <class Params>
  Gatv2Scorer(const Params& p, const HeadMap<A>& map_, const Gather<T>& x_)
      : map(map_),
        x(x_),
        x_dst(static_cast<const T*>(p.scores.dst.data)),
        dst_stride(p.scores.dst.stride),
        att(static_cast<const A*>(p.scores.att)),
        edge_rows(static_cast<const T*>(p.scores.edge)),
        slope(V::set(A(p.scores.negative_slope))),
        block(block_of(map_.width)) {}

  static int64_t block_of(int64_t width) {
    const int64_t rows = 24576 / (width * int64_t(sizeof(T)) + 1);
    return rows < 8 ? 8 : rows < kBlock ? rows : kBlock;
  }
  V leaky(V u) const { return V::if_positive(u, u, slope * u); }
  V leaky_slope(V u) const { return V::if_positive(u, V::set(A(1)), slope); }
  const T* edge_row(int32_t eid) const {
    return edge_rows ? edge_rows + int64_t(eid) * map.width : nullptr;
  }

  // logit[h] of one edge
  void logits(const EdgeSum<T, A>& sum, A* logit) const {
    sum_heads(map, logit, [&](int64_t f, int lanes) __attribute__((always_inline)) {
      const V a = lanes == V::kWidth ? V::load(att + f) : V::load(att + f, lanes);
      return a * leaky(sum(f, lanes));
    });
  }

  // weight = logits, score = 0, top = max(top, weight)
  void score(const Heads<A>& of, int64_t row, const Block& edges, const Scratch<A>& t, A* top,
             bool carry) const {
    for (int e = 0; e < edges.n; ++e) {
      prefetch_row(x, map.width, edges.col + e);
      logits({x.data + edges.col[e] * x.stride, x_dst + row * dst_stride, edge_row(edges.eid[e])},
             t.weight + e * of.stride);
    }
    of.loops.raise_top(of, edges.n, t, top, carry);
  }
};

template <class T, class A>
static Status gatv2_forward(const Gatv2Forward& p, const AlphaOut* to) {
  return run_forward<A, ForwardJob<T, A, Gatv2Scorer<T, A>, Gatv2Forward>, Gatv2Forward>(p, to);
}

}  // namespace GK_ISA
}  // namespace gatkernels
