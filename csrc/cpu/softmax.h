// The softmax over a row's edges, dropout, and the scratch both work in. Included once per
// instruction set.
#pragma once
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>

#include "rows.h"

namespace gatkernels {
namespace GK_ISA {

// Scratch of a thread, carved from one piece of memory; a vector past each array may be touched.
template <class A>
struct Scratch {
  A *score, *weight, *weight_pos;  // [kBlock, slots]
  uint32_t *words, *padded;        // Philox words, [kBlock, slots] and [kBlock, 4]
  A *top, *sum, *sum_pos, *head;   // [slots]
  A *row, *row_pos;                // [H * C]

  Scratch(char* memory, int64_t heads, int64_t width) { carve(memory, heads, width); }
  static size_t bytes(int64_t heads, int64_t width) {
    Scratch t(nullptr, heads, width);
    return t.used;
  }

 private:
  size_t used = 0;
  void carve(char* memory, int64_t heads, int64_t width) {
    const size_t lanes = size_t(slots<A>(heads));
    const auto take = [&](size_t size) {
      char* p = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(memory) + used);
      used += (size + 64 + 63) / 64 * 64;
      return p;
    };
    for (A** p : {&score, &weight, &weight_pos}) {
      *p = reinterpret_cast<A*>(take(kBlock * lanes * sizeof(A)));
    }
    words = reinterpret_cast<uint32_t*>(take(kBlock * (lanes + 4) * sizeof(uint32_t)));
    padded = reinterpret_cast<uint32_t*>(take(kBlock * 4 * sizeof(uint32_t)));
    for (A** p : {&top, &sum, &sum_pos, &head}) *p = reinterpret_cast<A*>(take(lanes * sizeof(A)));
    for (A** p : {&row, &row_pos}) *p = reinterpret_cast<A*>(take(size_t(width) * sizeof(A)));
  }
};

// The heads of edges laid out in vectors (kHeads = slot(heads)), and what every kernel does there.
template <class A, int kHeads>
struct HeadVectors {
  using V = Vec<A>;
  static constexpr int kEdges = V::kWidth / kHeads;  // per vector
  int heads;
  int stride;  // slots(heads): values per edge in the scratch arrays
  bool drop;
  uint64_t seed;
  uint32_t threshold;
  A scale;

  HeadVectors(const GatShape& shape, const Dropout& dropout)
      : heads(int(shape.heads)),
        stride(int(slots<A>(shape.heads))),
        drop(dropout.seed != nullptr),
        seed(drop ? uint64_t(*dropout.seed) : 0),
        threshold(keep_threshold(dropout.p)),
        scale(A(keep_scale(dropout.p))) {}

  // Calls body(h, lanes) for each slot of heads.
  template <class Body>
  void each_slot(Body body) const {
    for (int h = 0; h < heads; h += kHeads) body(h, heads - h < kHeads ? heads - h : kHeads);
  }
  // Calls body(place, first edge, edges) for each vector of a slot; place is in the scratch.
  template <class Body>
  void each_vector(int h, int n, Body body) const {
    for (int e = 0; e < n; e += kEdges) body(e * stride + h, e, n - e < kEdges ? n - e : kEdges);
  }
  // v where an edge is there, `other` past the last one
  static V there(V v, int edges, V other) {
    return edges < kEdges ? V::merge(edges * kHeads, v, other) : v;
  }
  // p[0 : lanes] for every edge of a vector
  static V repeat(const A* p, int lanes) {
    const int32_t first = 0;
    return V::template load_edges<kHeads>(p, 0, &first, 1, lanes);
  }
  static V fold_max(V v) { return V::template fold<kHeads>(v, V::max); }
  static V fold_add(V v) {
    return V::template fold<kHeads>(v, [](V a, V b) { return a + b; });
  }

  // weight = exp(weight - top); sum and sum_pos (+)= weights, those of positive score
  void exponentials(int n, Scratch<A>& t, const A* top, A* sum, A* sum_pos, bool carry) const {
    const V zero = V::set(A(0));
    each_slot([&](int h, int lanes) {
      // A maximum of -inf (all edges masked so far): keep -inf - lowest, not -inf - -inf.
      const V best = V::max(V::set(std::numeric_limits<A>::lowest()), repeat(top + h, lanes));
      V all = zero, positive = zero;
      each_vector(h, n, [&](int at, int, int edges) {
        const V w = V::exp(V::load(t.weight + at) - best);
        w.store(t.weight + at);
        const V counted = there(w, edges, zero);
        all = all + counted;
        positive = positive + V::if_positive(V::load(t.score + at), counted, zero);
      });
      all = fold_add(all);
      positive = fold_add(positive);
      if (carry) {
        all = all + repeat(sum + h, lanes);
        positive = positive + repeat(sum_pos + h, lanes);
      }
      all.store(sum + h, lanes);
      positive.store(sum_pos + h, lanes);
    });
  }

  // weight <- dropped(weight * factor), weight_pos <- weight where the score is positive;
  // factor [slots] may be null, and weight_pos not wanted.
  void weigh(Scratch<A>& t, const int32_t* eid, int n, const A* factor, bool pair) const {
    if (drop) draw(t, eid, n);
    each_slot([&](int h, int lanes) {
      V times = factor ? repeat(factor + h, lanes) : V::set(A(1));
      if (drop) times = times * V::set(scale);
      each_vector(h, n, [&](int at, int, int) {
        V w = V::load(t.weight + at) * times;
        if (drop) w = V::keep(w, t.words + at, threshold);
        w.store(t.weight + at);
        if (pair) V::if_positive(V::load(t.score + at), w, V::set(A(0))).store(t.weight_pos + at);
      });
    });
  }

 private:
  void draw(Scratch<A>& t, const int32_t* eid, int n) const {
    if (stride >= 4) {
      philox_words(seed, eid, n, (heads + 3) / 4, stride, t.words);
      return;
    }
    philox_words(seed, eid, n, 1, 4, t.padded);
    for (int e = 0; e < n; ++e) {
      for (int h = 0; h < stride; ++h) t.words[e * stride + h] = t.padded[e * 4 + h];
    }
  }
};

// Calls RUN(kHeads) for the slot of this many heads.
#define GK_FOR_SLOT(A, heads, RUN)         \
  switch (slot<A>(heads)) {                \
    case 1:                                \
      RUN(1);                              \
    case 2:                                \
      RUN(2);                              \
    case 4:                                \
      RUN((Vec<A>::kWidth < 4 ? 1 : 4));   \
    case 8:                                \
      RUN((Vec<A>::kWidth < 8 ? 1 : 8));   \
    default:                               \
      RUN((Vec<A>::kWidth < 16 ? 1 : 16)); \
  }

}  // namespace GK_ISA
}  // namespace gatkernels
