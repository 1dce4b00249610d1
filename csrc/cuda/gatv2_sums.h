// What GATv2's backward adds up over the edges of a row.
#pragma once
#include "backward.h"

namespace gatkernels {
namespace cuda {

// A row of a gradient, or a chunk's part of it.
template <class T, int V, int K>
struct OneRow {
  using A = Sum<T>;
  using Lanes = Lane<V, K>;
  A all[K][V];

  GK_DEVICE OneRow() {
    each([](A& value, int) { value = A(0); });
  }
  GK_DEVICE void absorb(const OneRow& other) {
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      GK_UNROLL
      for (int v = 0; v < V; ++v) all[k][v] += other.all[k][v];
    }
  }
  static constexpr int kValues = K * V;
  template <class Visit>
  GK_DEVICE void each(Visit visit) {
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      GK_UNROLL
      for (int v = 0; v < V; ++v) visit(all[k][v], k * V + v);
    }
  }
  template <class Call>
  GK_DEVICE void put_partial(const Call& call, const Lanes& lane, int, int64_t place) const {
    put_row<A, V, K>(backward_partial<A>(call.partials, call.layout, place), lane, all);
  }
  template <class Call>
  GK_DEVICE void get_partial(const Call& call, const Lanes& lane, int64_t place) {
    const A* partial = backward_partial<A>(call.partials, call.layout, place);
    Rows<A, V, K>(partial, 0).get(0, true, lane, all);
  }
  template <class Call>
  GK_DEVICE void put(const Call& call, const Item& item, const Lanes& lane) const {
    if (item.chunk >= 0) {
      put_partial(call, lane, 0, item.chunk);
    } else {
      put_row<T, V, K>(static_cast<T*>(call.result) + item.row * call.layout.width(), lane, all);
    }
  }
};

// sum dl att leaky'(u) = att (slope sum dl + (1 - slope) sum of dl where u > 0)
template <class A, int V, int K>
struct SlopeSums {
  A all[K] = {}, positive[K][V] = {};

  GK_DEVICE void add(int k, A dl, const A (&u)[V]) {
    all[k] += dl;
    GK_UNROLL
    for (int v = 0; v < V; ++v) {
      if (u[v] > A(0)) positive[k][v] += dl;
    }
  }
  template <class Scorer>
  GK_DEVICE void add_to(A (&sums)[K][V], const Scorer& scorer) const {
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      GK_UNROLL
      for (int v = 0; v < V; ++v) {
        sums[k][v] +=
            scorer.low[k][v] * all[k] + (scorer.att[k][v] - scorer.low[k][v]) * positive[k][v];
      }
    }
  }
};
// sum dl leaky(u) = slope sum of dl u where u <= 0, + sum of dl u where u > 0
template <class A, int V, int K>
struct AttSums {
  A negative[K][V] = {}, positive[K][V] = {};

  GK_DEVICE void add(int k, A dl, const A (&u)[V]) {
    GK_UNROLL
    for (int v = 0; v < V; ++v) {
      if (u[v] > A(0)) {
        positive[k][v] += dl * u[v];
      } else {
        negative[k][v] += dl * u[v];
      }
    }
  }
  template <class Scorer>
  GK_DEVICE void add_to(A (&sums)[K][V], const Scorer& scorer) const {
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      GK_UNROLL
      for (int v = 0; v < V; ++v) {
        sums[k][v] += scorer.slope * negative[k][v] + positive[k][v];
      }
    }
  }
};

}  // namespace cuda
}  // namespace gatkernels
