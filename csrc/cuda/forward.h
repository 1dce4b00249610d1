// The running softmax of a row, and what becomes of it: a row of the output, or a hub's partial
// result.
#pragma once
#include "launch.h"
#include "rows.h"

namespace gatkernels {
namespace cuda {

// Where results go, for both families.
struct ForwardResults {
  void* out;       // [Nd, H * C]
  void* out_pos;   // [Nd, H * C], or null
  void* stats;     // [Nd, 3, H], or null
  void* partials;  // [places, partial_width] of sums: out, out_pos, maximum, sum, positive sum
};

GK_HOST_DEVICE inline int64_t forward_partial_width(int64_t heads, int64_t channels) {
  return (2 * heads * channels + 3 * heads + 3) / 4 * 4;  // rows begin at 16 bytes
}

template <class A>
GK_DEVICE A* forward_partial(const ForwardResults& to, const Layout& l, int64_t place) {
  return static_cast<A*>(to.partials) + place * forward_partial_width(l.heads, l.channels);
}

// Per vector of a lane: sums of rows, and the softmax of its head.
template <class T, int V, int K>
struct RowState {
  using A = Sum<T>;
  using Lanes = Lane<V, K>;
  A out[K][V], pos[K][V];
  A top[K], sum[K], sum_pos[K];

  GK_DEVICE RowState() {
    each([](A& value, int i) { value = i < K ? minus_infinity<A>() : A(0); });
  }
  GK_DEVICE void scale(int k, A factor, bool pair) {
    GK_UNROLL
    for (int v = 0; v < V; ++v) out[k][v] *= factor;
    if (pair) {
      GK_UNROLL
      for (int v = 0; v < V; ++v) pos[k][v] *= factor;
    }
  }

  // The softmax as lanes hold it where they are edges, each for its head.
  GK_DEVICE void set_softmax(const Lane<V, K>& lane, A top_, A sum_, A sum_pos_) {
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      top[k] = lane.from_lane(top_, lane.head_of(k));
      sum[k] = lane.from_lane(sum_, lane.head_of(k));
      sum_pos[k] = lane.from_lane(sum_pos_, lane.head_of(k));
    }
  }
  // The end of an item: a row, or a chunk of a hub's.
  GK_DEVICE void put(const ForwardResults& to, const Item& item, const Lane<V, K>& lane, int part) {
    if (item.chunk >= 0) {
      put_partial(to, lane, part, item.chunk);
    } else {
      finish(to, item.row, lane, part, item.count == 0);
    }
  }
  GK_DEVICE void put_partial(const ForwardResults& to, const Lanes& lane, int part,
                             int64_t place) const {
    const int heads = lane.layout.heads, width = lane.layout.width();
    A* row = forward_partial<A>(to, lane.layout, place);
    put_row<A, V, K>(row, lane, out);
    if (to.out_pos) put_row<A, V, K>(row + width, lane, pos);
    A* scalars = row + 2 * width + lane.first_head;
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      if (part != 0 || !lane.leads(k)) continue;
      scalars[lane.head_of(k)] = top[k];
      scalars[heads + lane.head_of(k)] = sum[k];
      scalars[2 * heads + lane.head_of(k)] = sum_pos[k];
    }
  }
  template <class Call>
  GK_DEVICE void put_partial(const Call& call, const Lanes& lane, int part, int64_t place) const {
    put_partial(call.to, lane, part, place);
  }
  template <class Call>
  GK_DEVICE void get_partial(const Call& call, const Lanes& lane, int64_t place) {
    const int heads = lane.layout.heads, width = lane.layout.width();
    const A* row = forward_partial<A>(call.to, lane.layout, place);
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      if (lane.head_of(k) >= lane.tile_heads) continue;
      const A* scalars = row + 2 * width + lane.first_head + lane.head_of(k);
      top[k] = __ldg(scalars);
      sum[k] = __ldg(scalars + heads);
      sum_pos[k] = __ldg(scalars + 2 * heads);
      if (!lane.has(k)) continue;
      load<A, V>(row + lane.feature[k], out[k]);
      if (call.to.out_pos) load<A, V>(row + width + lane.feature[k], pos[k]);
    }
  }
  GK_DEVICE void absorb(const RowState& other) {
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      const A best = larger(top[k], other.top[k]);
      const A mine = rescale(top[k], best), theirs = rescale(other.top[k], best);
      top[k] = best;
      sum[k] = mine * sum[k] + theirs * other.sum[k];
      sum_pos[k] = mine * sum_pos[k] + theirs * other.sum_pos[k];
      GK_UNROLL
      for (int v = 0; v < V; ++v) {
        out[k][v] = mine * out[k][v] + theirs * other.out[k][v];
        pos[k][v] = mine * pos[k][v] + theirs * other.pos[k][v];
      }
    }
  }
  static constexpr int kValues = K * (2 * V + 3);
  template <class Visit>
  GK_DEVICE void each(Visit visit) {
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      visit(top[k], k);
      visit(sum[k], K + k);
      visit(sum_pos[k], 2 * K + k);
    }
    each_value<K, V>([&](int k, int v) {
      visit(out[k][v], 3 * K + k * V + v);
      visit(pos[k][v], 3 * K + K * V + k * V + v);
    });
  }
  GK_DEVICE void finish(const ForwardResults& to, int64_t row, const Lane<V, K>& lane, int part,
                        bool empty) {
    const int heads = lane.layout.heads, width = lane.layout.width();
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      const A inverse = empty ? A(0) : A(1) / sum[k];
      if (to.stats && part == 0 && lane.leads(k)) {
        A* stats = static_cast<A*>(to.stats) + row * 3 * heads + lane.first_head + lane.head_of(k);
        stats[0] = empty ? A(0) : top[k];
        stats[heads] = inverse;
        stats[2 * heads] = sum_pos[k] * inverse;
      }
      scale(k, inverse, to.out_pos != nullptr);
    }
    put_row<T, V, K>(static_cast<T*>(to.out) + row * width, lane, out);
    if (to.out_pos) {
      put_row<A, V, K>(static_cast<A*>(to.out_pos) + row * width, lane, pos);
    }
  }
};

// Merges the partial results of hubs and writes their rows.
template <class T>
cudaError_t merge_forward(const Shape& shape, bool rows_aligned, const Plan& plan,
                          const ForwardResults& to);

}  // namespace cuda
}  // namespace gatkernels
