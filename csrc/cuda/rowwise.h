// Row-wise scores (core/scores.h) as a lane sees them: V channels of each of K vectors.
#pragma once
#include "../core/scores.h"
#include "rows.h"

namespace gatkernels {
namespace cuda {

template <class T, class Scorer, int V, int K>
struct RowScores {
  using A = Sum<T>;
  Rows<T, V, K> x, dst, edge;  // edge may be null
  Rows<A, V, K> atts;          // one row
  Scorer scorer;
  typename Scorer::Att att[K][V];  // of this lane

  GK_DEVICE RowScores(const RowwiseScores& scores, const Matrix& x_, const Layout& layout)
      : x(x_),
        dst(scores.dst),
        edge(scores.edge, layout.width()),
        atts(scores.att, 0),
        scorer{{A(scores.negative_slope), A(1)}} {}
  GK_DEVICE void enter(const Lane<V, K>& lane) {
    A values[K][V];
    atts.get(0, true, lane, values);
    each_value<K, V>([&](int k, int v) { att[k][v] = scorer.prepare(values[k][v]); });
  }

  // This lane's share of the logit; `key` is x_j and the edge's feature.
  GK_DEVICE A share(int k, const A (&key)[V], const A (&x_i)[V]) const {
    A sum = A(0);
    GK_UNROLL
    for (int v = 0; v < V; ++v) sum += scorer.term(att[k][v], key[v], x_i[v]);
    return sum;
  }
  // The same of the other parts of a wide head, and of <grad, x>: read anew for every edge.
  GK_DEVICE A other_parts(int64_t j, int64_t i, int64_t id, const Lane<V, K>& lane,
                          int part) const {
    return lane.over_other_parts(part, [&](int f) {
      A key = x.at(j, f);
      if (edge.data) key += edge.at(id, f);
      return scorer.term(scorer.prepare(atts.at(0, f)), key, dst.at(i, f));
    });
  }
  GK_DEVICE A other_gain(const Rows<T, V, K>& grad, int64_t j, int64_t i, const Lane<V, K>& lane,
                         int part) const {
    return lane.over_other_parts(part, [&](int f) { return x.at(j, f) * grad.at(i, f); });
  }
};

}  // namespace cuda
}  // namespace gatkernels
