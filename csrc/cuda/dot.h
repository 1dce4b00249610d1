// Dot products: rows of up to three widths, q and k [H, C], v [H, D], and edge_query [H, F] with
// edge [F], on the lanes of one layout, which is made for the widest of them.
#pragma once
#include "edge_loop.h"
#include "launch.h"

namespace gatkernels {
namespace cuda {

constexpr int kDotTables = 1;  // of a board: dropout factors

enum DotWidth { kOfKeys, kOfValues, kOfFeatures };

// A layout of so many `channels` of q and k, D and F.
struct DotLayout : Layout {
  int values, features;
};

// A lane, in rows of q and k, and the same lane in the others. kPlain: D is C and F is 0.
template <int V, int K, bool kPlain>
struct DotLanes : Lane<V, K> {
  using Keys = Lane<V, K>;
  Keys values;
  Keys features;
  Keys shared_features;  // of edge: the lanes of all heads have them

  GK_DEVICE explicit DotLanes(const DotLayout& l)
      : Keys(l),
        values(kPlain ? Keys(*this) : Keys::in_rows_of(l.values)),
        features(Keys::in_rows_of(kPlain ? 0 : l.features)),
        shared_features(Keys::in_rows_of(kPlain ? 0 : l.features, true)) {
    if (!kPlain) return;
    GK_UNROLL
    for (int k = 0; k < K; ++k) features.feature[k] = -1;  // known to the compiler
  }
  GK_DEVICE void enter(int part) {
    if (kPlain) return;  // there is one part
    Keys::enter(part);
    values.enter(part);
    features.enter(part);
    shared_features.enter(part);
  }
  template <DotWidth kWidth>
  GK_DEVICE const Keys& of() const {
    return kWidth == kOfKeys     ? static_cast<const Keys&>(*this)
           : kWidth == kOfValues ? values
                                 : features;
  }
};

// The rows that scores are made of, read one by one.
template <class T, int V, int K>
struct DotRows {
  using A = Sum<T>;
  Rows<T, V, K> q, k, queries, edge;  // the latter two may be null
  A scale;

  GK_DEVICE DotRows(const DotScores& scores, int features)
      : q(scores.q),
        k(scores.k),
        queries(scores.edge_query),
        edge(scores.edge, features),
        scale(A(scores.scale)) {}
  // What other parts of a wide head add to a score.
  template <class Lanes>
  GK_DEVICE A other_parts(int64_t i, int64_t j, int64_t id, const Lanes& lanes, int part) const {
    const A keys = lanes.over_other_parts(part, [&](int f) { return q.at(i, f) * k.at(j, f); });
    return scale * (keys + of_edge(queries, i, id, lanes, part));
  }
  // The same of <dO, v> and <dE, edge>.
  template <class Lanes>
  GK_DEVICE A other_gain(const Rows<T, V, K>& grad, const Rows<T, V, K>& v,
                         const Rows<T, V, K>& edge_grad, int64_t i, int64_t j, int64_t id,
                         const Lanes& lanes, int part) const {
    const A values =
        lanes.values.over_other_parts(part, [&](int f) { return grad.at(i, f) * v.at(j, f); });
    return values + of_edge(edge_grad, i, id, lanes, part);
  }

 private:
  template <class Lanes>
  GK_DEVICE A of_edge(const Rows<T, V, K>& rows, int64_t i, int64_t id, const Lanes& lanes,
                      int part) const {
    const int before = lanes.first_head * lanes.features.channels;  // a tile is one head
    return lanes.features.over_other_parts(
        part, [&](int f) { return rows.at(i, f) * edge.at(id, f - before); });
  }
};

template <class A, int V, int K>
GK_DEVICE void scale_by(A factor, A (&values)[K][V]) {
  each_value<K, V>([&](int k, int v) { values[k][v] *= factor; });
}

// Sums for the features of two rows. The partial result of a chunk has them side by side, and room
// for three values per head.
template <class T, int V, int K, DotWidth kFirst, DotWidth kSecond>
struct DotSums {
  using A = Sum<T>;
  using Lanes = DotLanes<V, K, false>;
  A first[K][V] = {}, second[K][V] = {};

  static constexpr int kValues = 2 * K * V;
  template <class Visit>
  GK_DEVICE void each(Visit visit) {
    each_value<K, V>([&](int k, int v) {
      visit(first[k][v], k * V + v);
      visit(second[k][v], (K + k) * V + v);
    });
  }
  GK_DEVICE void absorb(const DotSums& other) {
    each_value<K, V>([&](int k, int v) {
      first[k][v] += other.first[k][v];
      second[k][v] += other.second[k][v];
    });
  }
  // Both return what is past the sums in the partial result.
  template <class Call, class AnyLanes>
  GK_DEVICE A* put_partial(const Call& call, const AnyLanes& lanes, int, int64_t place) const {
    A* row = partial(call, lanes, place);
    put_row<A, V, K>(row, lanes.template of<kFirst>(), first);
    row += lanes.template of<kFirst>().width();
    put_row<A, V, K>(row, lanes.template of<kSecond>(), second);
    return row + lanes.template of<kSecond>().width();
  }
  template <class Call, class AnyLanes>
  GK_DEVICE const A* get_partial(const Call& call, const AnyLanes& lanes, int64_t place) {
    const A* row = partial(call, lanes, place);
    Rows<A, V, K>(row, 0).get(0, true, lanes.template of<kFirst>(), first);
    row += lanes.template of<kFirst>().width();
    Rows<A, V, K>(row, 0).get(0, true, lanes.template of<kSecond>(), second);
    return row + lanes.template of<kSecond>().width();
  }
  // The row of each result, which are of T.
  template <class AnyLanes>
  GK_DEVICE void put(void* to_first, void* to_second, int64_t row, const AnyLanes& lanes) const {
    const auto& one = lanes.template of<kFirst>();
    const auto& other = lanes.template of<kSecond>();
    put_row<T, V, K>(static_cast<T*>(to_first) + row * one.width(), one, first);
    put_row<T, V, K>(static_cast<T*>(to_second) + row * other.width(), other, second);
  }

 private:
  template <class Call, class AnyLanes>
  GK_DEVICE static A* partial(const Call& call, const AnyLanes& lanes, int64_t place) {
    const int64_t sums = lanes.template of<kFirst>().width() + lanes.template of<kSecond>().width();
    const int64_t width = (sums + 3 * lanes.layout.heads + 3) / 4 * 4;  // rows begin at 16 bytes
    return static_cast<A*>(call.partials) + place * width;
  }
};

// The widest of the rows' shapes.
inline Shape widest_of(Shape shape, int64_t values, int64_t features) {
  if (values > shape.channels) shape.channels = values;
  if (features > shape.channels) shape.channels = features;
  return shape;
}
// Whether rows of so many channels consist of 128-bit vectors.
template <class T>
bool in_vectors(int64_t channels) {
  return channels % (16 / int64_t(sizeof(T))) == 0;
}
template <class T>
bool aligned(const DotScores& s, int64_t channels) {
  return in_vectors<T>(channels) && in_vectors<T>(s.features) && aligned<T>(s.q) &&
         aligned<T>(s.k) && aligned<T>(s.edge_query) && aligned(s.edge, 0);
}

// run(V, K, call) with what every call has, for values of so many channels.
template <class T, class Call, class Params, class Run>
cudaError_t with_dot_call(const Params& p, const Edges& edges, int64_t values, bool rows_aligned,
                          const Plan& plan, Run run) {
  const Shape widest = widest_of(p.shape, values, p.scores.features);
  const bool fit = rows_aligned && in_vectors<T>(values) && aligned<T>(p.scores, p.shape.channels);
  return with_vectors<T, kShare2>(widest, fit, plan.most_heads, [&](auto v, auto k) {
    DotLayout layout{make_layout(widest, v(), k(), plan.most_heads), int(values),
                     int(p.scores.features)};
    layout.channels = int(p.shape.channels);
    Call call = call_of<Call>(p, edges, plan.schedule, layout);
    call.partials = plan.partials;
    return run(v, k, call);
  });
}
inline bool plain(const DotLayout& l) {
  return l.values == l.channels && l.features == 0 && l.parts == 1;
}

}  // namespace cuda
}  // namespace gatkernels
