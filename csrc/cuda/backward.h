// What the backward passes of both families share.
#pragma once
#include "launch.h"
#include "rows.h"

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
  Matrix grad_dst{};  // separable only

  template <class Params>
  explicit Prologue(const Params& p)
      : csr(p.csr),
        grad(p.grad),
        out(p.out),
        stats(p.stats),
        alpha(p.alpha),
        grad_alpha(p.grad_alpha),
        fields(p.fields) {}
};

// Fills the fields, and separable scores' grad_dst = (1 - slope) (<dO, out_pos> - delta share).
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
