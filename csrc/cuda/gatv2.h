// GATv2's scores (Brody et al., 2022): l = sum_c att[c] leaky(u)[c], u = x_src + x_dst + edge.
#pragma once
#include "rows.h"

namespace gatkernels {
namespace cuda {

template <class T, int V, int K>
struct Gatv2Scorer {
  using A = Sum<T>;
  Rows<T, V, K> x, dst, edge;  // edge may be null
  Rows<A, V, K> atts;          // one row
  A slope;
  A att[K][V], low[K][V];  // of this lane: what u is multiplied with above zero and below

  GK_DEVICE Gatv2Scorer(const RowwiseScores& scores, const Matrix& x_, const Layout& layout)
      : x(x_),
        dst(scores.dst),
        edge(scores.edge, layout.width()),
        atts(scores.att, 0),
        slope(A(scores.negative_slope)) {}
  GK_DEVICE void enter(const Lane<V, K>& lane) {
    atts.get(0, true, lane, att);
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      GK_UNROLL
      for (int v = 0; v < V; ++v) low[k][v] = slope * att[k][v];
    }
  }

  GK_DEVICE A leaky(A u) const { return u > A(0) ? u : slope * u; }
  // att leaky'(u)
  GK_DEVICE A steepness(int k, int v, A u) const { return u > A(0) ? att[k][v] : low[k][v]; }
  GK_DEVICE void add_edge(const Raw<T, V>& row, A (&u)[V]) const {
    A values[V];
    row.get(values);
    GK_UNROLL
    for (int v = 0; v < V; ++v) u[v] += values[v];
  }
  // This lane's share of the logit.
  GK_DEVICE A share(int k, const A (&u)[V]) const {
    A sum = A(0);
    GK_UNROLL
    for (int v = 0; v < V; ++v) sum += steepness(k, v, u[v]) * u[v];
    return sum;
  }
  // The same of the other parts of a wide head, and of <grad, x>: read anew for every edge.
  GK_DEVICE A other_parts(int64_t j, int64_t i, int64_t id, const Lane<V, K>& lane,
                          int part) const {
    A sum = A(0);
    for (int other = 0; other < lane.layout.parts; ++other) {
      for (int k = 0; k < K; ++k) {
        const int f = lane.feature_in(k, other);
        if (other == part || f < 0) continue;
        for (int v = 0; v < V; ++v) {
          A u = widen(x.data[j * x.stride + f + v]) + widen(dst.data[i * dst.stride + f + v]);
          if (edge.data) u += widen(edge.data[id * edge.stride + f + v]);
          sum += atts.data[f + v] * leaky(u);
        }
      }
    }
    return sum;
  }
  GK_DEVICE A other_gain(const Rows<T, V, K>& grad, int64_t j, int64_t i, const Lane<V, K>& lane,
                         int part) const {
    A sum = A(0);
    for (int other = 0; other < lane.layout.parts; ++other) {
      for (int k = 0; k < K; ++k) {
        const int f = lane.feature_in(k, other);
        if (other == part || f < 0) continue;
        for (int v = 0; v < V; ++v) {
          sum += widen(x.data[j * x.stride + f + v]) * widen(grad.data[i * grad.stride + f + v]);
        }
      }
    }
    return sum;
  }
};

}  // namespace cuda
}  // namespace gatkernels
