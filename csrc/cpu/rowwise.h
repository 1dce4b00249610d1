// Row-wise scores (core/scores.h), and their forward.
#pragma once
#include "../core/scores.h"
#include "forward.h"
#include "head_sums.h"

namespace gatkernels {
namespace GK_ISA {

constexpr int64_t kRowBytes = 24 << 10;      // three quarters of a first cache of 32 KiB
constexpr int64_t kPrefetchBytes = 8 << 10;  // ahead, where 16 rows are more

static inline int64_t clamped(int64_t n, int64_t least, int64_t most) {
  return n < least ? least : n < most ? n : most;
}
// Edges whose rows, of so many bytes together, stay in the first cache between score and sum.
static inline int64_t edges_in_cache(int64_t bytes) {
  return clamped(kRowBytes / (bytes + 1), 8, kBlock);
}

// Where the rows that edges score with come from. Scorer is one of core/scores.h, of vectors.
template <class T, class A, class Scorer>
struct RowScores {
  using V = Vec<A>;
  static constexpr bool kSigned = false;
  const HeadMap<A>& map;
  Gather<T> x;
  const T* x_dst;
  int64_t dst_stride;
  const A* att;
  const T* edge_rows;
  Scorer scorer;
  int64_t block;  // edges whose rows stay in the first cache between score and sum
  int distance;   // edges ahead that rows are asked for

  template <class Params>
  RowScores(const Params& p, const HeadMap<A>& map_, const Gather<T>& x_)
      : map(map_),
        x(x_),
        x_dst(static_cast<const T*>(p.scores.dst.data)),
        dst_stride(p.scores.dst.stride),
        att(static_cast<const A*>(p.scores.att)),
        edge_rows(static_cast<const T*>(p.scores.edge)),
        scorer{{V::set(A(p.scores.negative_slope)), V::set(A(1))}},
        block(block_of(map_.width)),
        distance(
            int(clamped(kPrefetchBytes / (map_.width * int64_t(sizeof(T)) + 1), 2, kPrefetch))) {}

  // `gathered` rows of an edge
  static int64_t block_of(int64_t width, int gathered = 1) {
    return edges_in_cache(gathered * width * int64_t(sizeof(T)));
  }
  const T* edge_row(int32_t eid) const {
    return edge_rows ? edge_rows + int64_t(eid) * map.width : nullptr;
  }

  // The terms of an edge's logits between its rows x_j and x_i, and its own.
  template <bool kEdges>
  GK_INLINE V term(const T* x_j, const T* x_i, const T* edge, int64_t f, int lanes) const {
    V key = load_row<A>(x_j + f, lanes);
    if (kEdges) key = key + load_row<A>(edge + f, lanes);
    const auto a = scorer.prepare(load_row<A>(att + f, lanes));
    return scorer.term(a, key, load_row<A>(x_i + f, lanes));
  }

  // weight = logits, top = max(top, weight)
  void score(const Heads<A>& of, int64_t row, const Block& edges, const Scratch<A>& t, A* top,
             bool carry) const {
    with_flag(edge_rows != nullptr, [&](auto has_edges) GK_INLINED {
      logits<decltype(has_edges)::value>(x_dst + row * dst_stride, edges, t.weight);
    });
    of.loops.raise_top(of, edges.n, t, top, carry);
  }
  template <bool kEdges>
  void logits(const T* x_i, const Block& edges, A* logit) const {
    A* const totals[] = {logit};
    sum_heads<unrolls<T>(!kEdges)>(
        map, edges.n, totals,
        [&](int e) GK_INLINED {
          const T* x_j = x.data + edges.col[e] * x.stride;
          const T* edge = kEdges ? edge_row(edges.eid[e]) : nullptr;
          return [this, x_j, x_i, edge](int64_t f, int lanes)
                     GK_INLINED { return Kinds<A, 1>{{term<kEdges>(x_j, x_i, edge, f, lanes)}}; };
        },
        [&](int e, int64_t f, int64_t count)
            GK_INLINED { prefetch_row(x, f, count, edges.col + e, distance); });
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
