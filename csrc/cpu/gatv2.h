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

template <class T, class A, int kHeads>
struct Gatv2Scorer {
  using V = Vec<A>;
  using Lanes = HeadVectors<A, kHeads>;
  const HeadMap<A>& map;
  Edges edges;
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
        edges(p.csr),
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

  // weight = logits, score = 0, top = max(top, weight) for n edges into `row` from `edge` on
  void score(const Lanes& lanes_of, int64_t row, int64_t edge, int n, Scratch<A>& t, A* top,
             bool carry) const {
    const int32_t* col = edges.col + edge;
    const int32_t* eid = edges.eid + edge;
    for (int e = 0; e < n; ++e) {
      prefetch_row(x, map.width, col + e);
      const EdgeSum<T, A> sum{x.data + col[e] * x.stride, x_dst + row * dst_stride,
                              edge_row(eid[e])};
      logits(sum, t.weight + e * lanes_of.stride);
    }
    const V lowest = V::set(-std::numeric_limits<A>::infinity());
    lanes_of.each_slot([&](int h, int lanes) {
      V best = carry ? lanes_of.repeat(top + h, lanes) : lowest;
      lanes_of.each_vector(h, n, [&](int at, int, int count) {
        best = V::max(best, lanes_of.there(V::load(t.weight + at), count, lowest));
        V::set(A(0)).store(t.score + at);
      });
      lanes_of.fold_max(best).store(top + h, lanes);
    });
  }
};

template <class T, class A>
static Status gatv2_forward(const Gatv2Forward& p, const AlphaOut* to) {
#define GK_RUN(kHeads)                                                                     \
  return run_forward<A, ForwardJob<T, A, kHeads, Gatv2Scorer<T, A, kHeads>, Gatv2Forward>, \
                     Gatv2Forward>(p, to)
  GK_FOR_SLOT(A, p.shape.heads, GK_RUN)
#undef GK_RUN
}

}  // namespace GK_ISA
}  // namespace gatkernels
