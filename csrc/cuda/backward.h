// What the backward passes of both attentions share.
#pragma once
#include "launch.h"
#include "rows.h"

namespace gatkernels {
namespace cuda {

// What an edge gathers of its destination besides rows, [Nd, H, 4]: score_dst (GAT only), row
// maximum, 1 / sum and delta = <dO, out>, so that one load of 128 bits brings them.
enum Field { kScoreDst, kTop, kInverse, kDelta };

struct Prologue {
  Layout layout;
  Edges csr;
  GatScores scores;  // GAT only
  Matrix grad;       // [Nd, H * C]
  const void* out;
  const void* out_pos;  // GAT only
  const void* stats;
  const void* alpha;       // with grad_alpha
  const void* grad_alpha;  // or null
  void* fields;
  Matrix grad_dst;  // null data for GATv2
};

// Fills the fields, and GAT's grad_dst = (1 - slope) (<dO, out_pos> - delta share).
template <class T>
cudaError_t backward_prologue(const Shape& shape, bool rows_aligned, Prologue call,
                              cudaStream_t stream);

GK_HOST_DEVICE inline int64_t backward_partial_width(int64_t heads, int64_t channels) {
  return (2 * heads * channels + heads + 3) / 4 * 4;  // rows begin at 16 bytes
}
template <class A>
GK_DEVICE A* backward_partial(void* partials, const Layout& l, int64_t place) {
  return static_cast<A*>(partials) + place * backward_partial_width(l.heads, l.channels);
}

// Sums of one row; the partial result of a chunk holds them side by side: [2, H * C] and [H].
template <class T, int V, int K>
struct RowSums {
  using A = Sum<T>;
  using Lanes = Lane<V, K>;
  A all[K][V], positive[K][V];
  A sum;  // of this lane's head, where lanes are edges

  GK_DEVICE RowSums() : sum(A(0)) {
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      GK_UNROLL
      for (int v = 0; v < V; ++v) all[k][v] = positive[k][v] = A(0);
    }
  }
  GK_DEVICE void absorb(const RowSums& other) {
    sum += other.sum;
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      GK_UNROLL
      for (int v = 0; v < V; ++v) {
        all[k][v] += other.all[k][v];
        positive[k][v] += other.positive[k][v];
      }
    }
  }
  template <class Call>
  GK_DEVICE void put_partial(const Call& call, const Lanes& lane, int, int64_t place) const {
    const int width = lane.layout.width();
    A* partial = backward_partial<A>(call.partials, lane.layout, place);
    put_row<A, V, K>(partial, lane, all);
    put_row<A, V, K>(partial + width, lane, positive);
    if (lane.scores() && lane.first_edge == 0) {
      partial[2 * width + lane.first_head + lane.head] = sum;
    }
  }
  template <class Call>
  GK_DEVICE void get_partial(const Call& call, const Lanes& lane, int64_t place) {
    const int width = lane.layout.width();
    const A* partial = backward_partial<A>(call.partials, lane.layout, place);
    Rows<A, V, K>(partial, 0).get(0, true, lane, all);
    Rows<A, V, K>(partial + width, 0).get(0, true, lane, positive);
    if (lane.scores()) sum = __ldg(partial + 2 * width + lane.first_head + lane.head);
  }
  static constexpr int kValues = 2 * K * V + 1;
  template <class Visit>
  GK_DEVICE void each(Visit visit) {
    visit(sum, 2 * K * V);
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      GK_UNROLL
      for (int v = 0; v < V; ++v) {
        visit(all[k][v], k * V + v);
        visit(positive[k][v], (K + k) * V + v);
      }
    }
  }
};

}  // namespace cuda
}  // namespace gatkernels
