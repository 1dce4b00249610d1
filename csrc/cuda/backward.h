// What the backward passes share.
#pragma once
#include "gather.h"
#include "launch.h"

namespace gatkernels {
namespace cuda {

// What an edge gathers of its destination besides rows, [Nd, H, 4]: score_dst (separable only), row
// maximum, 1 / sum and delta = <dO, out>, so that one load of 128 bits brings them.
enum Field { kScoreDst, kTop, kInverse, kDelta };

struct Prologue {
  Layout layout{};
  Edges csr;
  GatScores scores{};  // separable only
  Matrix grad;         // [Nd, H * C]
  const void* out;
  const void* out_pos = nullptr;  // separable only
  const void* stats;
  const void* alpha;       // with grad_alpha
  const void* grad_alpha;  // or null
  void* fields;
  Matrix grad_dst{};   // separable only
  Matrix edge_grad{};  // [Nd, H * features]; these three for dot products with edge features
  const void* edge_out = nullptr;
  int features = 0;

  template <class Params>
  explicit Prologue(const Params& p)
      : csr(p.csr),
        grad(p.grad),
        out(p.out),
        stats(p.stats),
        alpha(p.alpha),
        grad_alpha(p.grad_alpha),
        fields(p.fields) {}
  explicit Prologue(const DotDestinations& p)
      : csr(p.csr),
        grad(p.grads.out),
        out(p.out),
        stats(p.stats),
        alpha(p.alpha),
        grad_alpha(p.grads.alpha),
        fields(p.fields),
        edge_grad(p.grads.edge_out),
        edge_out(p.edge_out),
        features(int(p.scores.features)) {}
};

// Fills the fields, and separable scores' grad_dst = (1 - slope) (<dO, out_pos> - delta share).
template <class T>
cudaError_t backward_prologue(const Shape& shape, bool rows_aligned, Prologue call,
                              cudaStream_t stream);

// The terms of U edges from e on: w = alpha m and dl, from this lane's shares of their logits and
// of <dO, x>. kPlain: there is no gradient of attention weights. Every lane of the warp comes here;
// zeros where there is no edge.
template <bool kPlain, bool kWhole, int U, class Call, class A, int V, int K>
GK_DEVICE void edge_terms(const Call& call, const Lane<V, K>& lane, const Fields<A> (&f)[U][K],
                          const Board<A>& board, int e, int n, A (&logits)[U][K], A (&gains)[U][K],
                          A (&w)[U][K], A (&dl)[U][K]) {
  lane.add_channels_of_each(logits);
  lane.add_channels_of_each(gains);
  GK_UNROLL
  for (int k = 0; k < K; ++k) {
    A factors[U];
    if (call.dropout.seed) {
      load_plain(board.weights + lane.weight_of(k) * board.pitch + e, factors);
    }
    GK_UNROLL
    for (int u = 0; u < U; ++u) {
      w[u][k] = dl[u][k] = A(0);
      if (!kWhole && e + u >= n) continue;
      const A(&field)[4] = f[u][k].values;
      const A alpha = exp_below(logits[u][k], field[kTop]) * field[kInverse];
      A outer = gains[u][k];
      if (!kPlain && call.grad_alpha && lane.head_of(k) < lane.tile_heads) {
        outer += __ldg(static_cast<const A*>(call.grad_alpha) +
                       int64_t(board.ids[e + u]) * call.layout.heads + lane.first_head +
                       lane.head_of(k));
      }
      w[u][k] = call.dropout.seed ? alpha * factors[u] : alpha;
      dl[u][k] = w[u][k] * outer - alpha * field[kDelta];
    }
  }
}

GK_HOST_DEVICE inline int64_t backward_partial_width(int64_t heads, int64_t channels) {
  return (2 * heads * channels + heads + 3) / 4 * 4;  // rows begin at 16 bytes
}
template <class A>
GK_DEVICE A* backward_partial(void* partials, const Layout& l, int64_t place) {
  return static_cast<A*>(partials) + place * backward_partial_width(l.heads, l.channels);
}

// kRows sums for each feature of one row; the partial result of a chunk holds them side by side,
// [kRows, H * C].
template <class T, int V, int K, int kRows>
struct RowSums {
  using A = Sum<T>;
  using Lanes = Lane<V, K>;
  A of[kRows][K][V] = {};

  static constexpr int kValues = kRows * K * V;
  template <class Visit>
  GK_DEVICE void each(Visit visit) {
    GK_UNROLL
    for (int r = 0; r < kRows; ++r) {
      each_value<K, V>([&](int k, int v) { visit(of[r][k][v], (r * K + k) * V + v); });
    }
  }
  GK_DEVICE void absorb(const RowSums& other) {
    GK_UNROLL
    for (int r = 0; r < kRows; ++r) {
      each_value<K, V>([&](int k, int v) { of[r][k][v] += other.of[r][k][v]; });
    }
  }
  // Both return what is past the sums in the partial result.
  template <class Call>
  GK_DEVICE A* put_partial(const Call& call, const Lanes& lane, int, int64_t place) const {
    A* partial = backward_partial<A>(call.partials, lane.layout, place);
    GK_UNROLL
    for (int r = 0; r < kRows; ++r) {
      put_row<A, V, K>(partial + r * lane.layout.width(), lane, of[r]);
    }
    return partial + kRows * lane.layout.width();
  }
  template <class Call>
  GK_DEVICE const A* get_partial(const Call& call, const Lanes& lane, int64_t place) {
    const int width = lane.layout.width();
    const A* partial = backward_partial<A>(call.partials, lane.layout, place);
    GK_UNROLL
    for (int r = 0; r < kRows; ++r) {
      Rows<A, V, K>(partial + r * width, 0).get(0, true, lane, of[r]);
    }
    return partial + kRows * width;
  }
};

}  // namespace cuda
}  // namespace gatkernels
