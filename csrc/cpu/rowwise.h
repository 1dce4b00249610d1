// Row-wise scores (core/scores.h), and their forward.
#pragma once
#include "../core/scores.h"
#include "forward.h"

namespace gatkernels {
namespace GK_ISA {

constexpr int64_t kRowBytes = 24 << 10;  // three quarters of a first cache of 32 KiB

// The rows of features of an edge.
template <class T>
struct EdgeRows {
  const T* x_j;
  const T* x_i;
  const T* edge;  // or null
};

// Where the rows that edges score with come from. Scorer is one of core/scores.h, of vectors.
template <class T, class A, class Scorer>
struct RowScores {
  using V = Vec<A>;
  const HeadMap<A>& map;
  Gather<T> x;
  const T* x_dst;
  int64_t dst_stride;
  const A* att;
  const T* edge_rows;
  Scorer scorer;
  int64_t block;  // edges whose rows stay in the first cache between score and sum

  template <class Params>
  RowScores(const Params& p, const HeadMap<A>& map_, const Gather<T>& x_)
      : map(map_),
        x(x_),
        x_dst(static_cast<const T*>(p.scores.dst.data)),
        dst_stride(p.scores.dst.stride),
        att(static_cast<const A*>(p.scores.att)),
        edge_rows(static_cast<const T*>(p.scores.edge)),
        scorer{{V::set(A(p.scores.negative_slope)), V::set(A(1))}},
        block(block_of(map_.width)) {}

  static int64_t block_of(int64_t width) {
    const int64_t rows = kRowBytes / (width * int64_t(sizeof(T)) + 1);
    return rows < 8 ? 8 : rows < kBlock ? rows : kBlock;
  }
  const T* edge_row(int32_t eid) const {
    return edge_rows ? edge_rows + int64_t(eid) * map.width : nullptr;
  }

  // logit[h] of an edge; two captures, which are passed in registers
  void logits(const EdgeRows<T>& rows, A* logit) const {
    sum_heads(map, logit, [this, &rows](int64_t f, int lanes) __attribute__((always_inline)) {
      V key = load_row<A>(rows.x_j + f, lanes);
      if (rows.edge) key = key + load_row<A>(rows.edge + f, lanes);
      const auto a = scorer.prepare(load_row<A>(att + f, lanes));
      return scorer.term(a, key, load_row<A>(rows.x_i + f, lanes));
    });
  }

  // weight = logits, score = 0, top = max(top, weight)
  void score(const Heads<A>& of, int64_t row, const Block& edges, const Scratch<A>& t, A* top,
             bool carry) const {
    const T* x_i = x_dst + row * dst_stride;
    for (int e = 0; e < edges.n; ++e) {
      prefetch_row(x, map.width, edges.col + e);
      logits({x.data + edges.col[e] * x.stride, x_i, edge_row(edges.eid[e])},
             t.weight + e * of.stride);
    }
    of.loops.raise_top(of, edges.n, t, top, carry);
  }
};

template <class T, class A>
static Status rowwise_forward(const RowwiseForward& p) {
  return with_scorer(p.scorer, [&](auto scorer) {
    using Scorer = typename decltype(scorer)::template type<Vec<A>>;
    return run_forward<T, A, RowScores<T, A, Scorer>>(p, {p.out, nullptr, p.stats});
  });
}
template <class T, class A>
static Status rowwise_alpha(const RowwiseAlpha& p) {
  return with_scorer(p.scorer, [&](auto scorer) {
    using Scorer = typename decltype(scorer)::template type<Vec<A>>;
    return run_alpha<T, A, RowScores<T, A, Scorer>>(p, p.x);
  });
}

}  // namespace GK_ISA
}  // namespace gatkernels
