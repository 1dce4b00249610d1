// The loops of heads.h, for each number of heads that lie side by side in a vector.
#pragma once
#include <cmath>
#include <limits>

#include "heads.h"

namespace gatkernels {
namespace GK_ISA {

template <class A, int kHeads>
struct Loops {
  using V = Vec<A>;
  static constexpr int kEdges = V::kWidth / kHeads;  // per vector

  // Calls body(h, lanes) for each slot of heads.
  template <class Body>
  static void each_slot(const Heads<A>& of, Body body) {
    for (int h = 0; h < of.heads; h += kHeads) {
      body(h, of.heads - h < kHeads ? of.heads - h : kHeads);
    }
  }
  // Calls body(at, first edge, edges) for each vector of a slot; `at` counts in the scratch. What a
  // body reads through pointers is taken out of it by hand: a compiler must fear that a store of
  // a vector changes them.
  template <class Body>
  GK_INLINE static void each_vector(const Heads<A>& of, int h, int n, Body body) {
    const int64_t step = int64_t(kEdges) * of.stride;
    int64_t at = h;
    int e = 0;
    for (; e + kEdges <= n; e += kEdges, at += step) body(at, e, kEdges);
    if (e < n) body(at, e, n - e);
  }
  // v where an edge is there, `other` past the last one
  static V there(V v, int edges, V other) {
    return edges < kEdges ? V::merge(edges * kHeads, v, other) : v;
  }
  // p[0 : lanes] for every edge of a vector
  static V repeat(const A* p, int lanes) { return V::template repeat<kHeads>(p, lanes); }
  static V fold_max(V v) { return V::template fold<kHeads>(v, V::max); }
  static V fold_add(V v) {
    return V::template fold<kHeads>(v, [](V a, V b) { return a + b; });
  }
  // Fields of the destinations `col` for a slot of heads from h on, those of all H heads side by
  // side
  GK_INLINE static void load_fields(const A* fields, int64_t stride, int heads, int h,
                                    const int32_t* col, int edges, int lanes, V (&field)[4]) {
    if constexpr (kHeads == 1) {
      V::load_fours(fields, stride, col, edges, field);
    } else {
      for (int k = 0; k < 4; ++k) {
        field[k] =
            V::template load_edges<kHeads>(fields + k * heads + h, stride, col, edges, lanes);
      }
    }
  }
  // Asks for the `count` values from p + col[k] * stride on, of edges some way ahead.
  GK_INLINE static void prefetch(const A* p, int64_t count, int64_t stride, const int32_t* col,
                                 int edges, const int32_t* col_end) {
    constexpr int64_t kLine = 64 / int64_t(sizeof(A));
    const int32_t* ahead = col + kScorePrefetch + edges <= col_end ? col + kScorePrefetch : col;
    for (int k = 0; k < edges; ++k) {
      const A* values = p + int64_t(ahead[k]) * stride;
      for (int64_t at = 0; at < count; at += kLine) __builtin_prefetch(values + at);
    }
  }
  // s = ends + edge score, if there are such, for the edges of one vector
  GK_INLINE static V add_edge(const A* edge_score, int heads, V ends, const int32_t* eid, int edges,
                              int lanes) {
    if (edge_score == nullptr) return ends;
    return ends + V::template load_edges<kHeads>(edge_score, heads, eid, edges, lanes);
  }

  // Values from head h on, or null where there are none
  static const A* from_head(const A* p, int h) { return p ? p + h : nullptr; }

  static void gat_score(const Heads<A>& of, const GatTerms<A>& terms, const Block& block,
                        const Scratch<A>& t, A* top, bool carry) {
    const V slope = V::set(terms.slope);
    each_slot(of, [&](int h, int lanes) {
      const V own = repeat(terms.own + h, lanes);
      const A *const others = terms.other + h, *const edge_score = from_head(terms.edge_score, h);
      const int64_t stride = terms.other_stride;
      const Block b = block;
      const int heads = of.heads;
      A *const score = t.score, *const weight = t.weight;
      V best = carry ? repeat(top + h, lanes) : V::set(-std::numeric_limits<A>::infinity());
      each_vector(of, h, b.n, [&](int64_t at, int e, int edges) GK_INLINED {
        const int32_t* col = b.col + e;
        prefetch(others, lanes, stride, col, edges, b.col_end);
        const V other = V::template load_edges<kHeads>(others, stride, col, edges, lanes);
        const V s = add_edge(edge_score, heads, other + own, b.eid + e, edges, lanes);
        const V l = V::if_positive(s, s, slope * s);
        best = V::max(best, l);
        s.store(score + at);
        l.store(weight + at);
      });
      fold_max(best).store(top + h, lanes);
    });
  }

  static void gat_alpha(const Heads<A>& of, const GatTerms<A>& terms, const Block& block,
                        const Scratch<A>& t, A* sum, bool carry, bool keep) {
    const V zero = V::set(A(0)), one = V::set(A(1)), slope = V::set(terms.slope);
    each_slot(of, [&](int h, int lanes) {
      const V own = repeat(terms.own + h, lanes);
      const A *const others = terms.other, *const edge_score = from_head(terms.edge_score, h);
      const int64_t stride = terms.other_stride;
      const Block b = block;
      const int heads = of.heads;
      A *const score = t.score, *const weight = t.weight, *const weight_pos = t.weight_pos;
      V total = zero;
      each_vector(of, h, b.n, [&](int64_t at, int e, int edges) GK_INLINED {
        const int32_t* col = b.col + e;
        // all fields lie side by side
        if (h == 0) prefetch(others, 4 * heads, stride, col, edges, b.col_end);
        V field[4];
        load_fields(others, stride, heads, h, col, edges, lanes, field);
        const V s = add_edge(edge_score, heads, own + field[0], b.eid + e, edges, lanes);
        const V l = V::if_positive(s, s, slope * s);
        const V alpha = exp(l - field[1]) * field[2];
        const V part = V::if_positive(s, one, slope) * (alpha * field[3]);
        total = total - there(part, edges, zero);
        s.store(score + at);
        alpha.store(weight + at);
        (keep ? part : V::where_positive(s, alpha)).store(weight_pos + at);
      });
      total = fold_add(total);
      if (carry) total = total + repeat(sum + h, lanes);
      total.store(sum + h, lanes);
    });
  }

  static void raise_top(const Heads<A>& of, int n, const Scratch<A>& t, A* top, bool carry) {
    const V lowest = V::set(-std::numeric_limits<A>::infinity());
    each_slot(of, [&](int h, int lanes) {
      const A* weight = t.weight;
      V best = carry ? repeat(top + h, lanes) : lowest;
      each_vector(of, h, n, [&](int64_t at, int, int edges) GK_INLINED {
        best = V::max(best, there(V::load(weight + at), edges, lowest));
      });
      fold_max(best).store(top + h, lanes);
    });
  }

  template <bool kGather>
  static void gradients(const Heads<A>& of, Fields<A> fields, const A* grad_alpha,
                        const Block& block, const Scratch<A>& t) {
    if (of.drop) draw(of, t, block.draw, block.n);
    each_slot(of, [&](int h, int lanes) {
      const A *const from = fields.data, *const more = from_head(grad_alpha, h);
      const int heads = of.heads;
      const bool drop = of.drop;
      const V scale = V::set(of.scale);
      const uint32_t threshold = of.threshold, *const words = t.words;
      const Block b = block;
      A *const score = t.score, *const weight = t.weight;
      V field[4];
      if (!kGather) {
        for (int k = 0; k < 3; ++k) field[k] = repeat(from + k * heads + h, lanes);
      }
      each_vector(of, h, b.n, [&](int64_t at, int e, int edges) GK_INLINED {
        if (kGather) load_fields(from, fields.stride, heads, h, b.col + e, edges, lanes, field);
        const V alpha = exp(V::load(weight + at) - field[0]) * field[1];
        V w = alpha, outer = V::load(score + at);
        if (drop) w = V::keep(w * scale, words + at, threshold);
        if (more) {
          outer = outer + V::template load_edges<kHeads>(more, heads, b.eid + e, edges, lanes);
        }
        w.store(weight + at);
        (w * outer - alpha * field[2]).store(score + at);
      });
    });
  }

  static void exponentials(const Heads<A>& of, int n, const Scratch<A>& t, const A* top, A* sum,
                           A* sum_pos, bool carry, bool pair) {
    const V zero = V::set(A(0));
    each_slot(of, [&](int h, int lanes) {
      // A maximum of -inf (all edges masked so far): keep -inf - lowest, not -inf - -inf.
      const V best = V::max(V::set(std::numeric_limits<A>::lowest()), repeat(top + h, lanes));
      A *const score = t.score, *const weight = t.weight, *const weight_pos = t.weight_pos;
      V all = zero, positive = zero;
      each_vector(of, h, n, [&](int64_t at, int, int edges) GK_INLINED {
        const V w = exp(V::load(weight + at) - best);
        w.store(weight + at);
        const V counted = there(w, edges, zero);
        all = all + counted;
        if (pair) {
          const V w_pos = V::where_positive(V::load(score + at), w);
          w_pos.store(weight_pos + at);
          positive = positive + there(w_pos, edges, zero);
        }
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

  static void weigh(const Heads<A>& of, const Block& block, const Scratch<A>& t, const A* factor,
                    bool pair) {
    if (of.drop) draw(of, t, block.draw, block.n);
    each_slot(of, [&](int h, int lanes) {
      V times = factor ? repeat(factor + h, lanes) : V::set(A(1));
      if (of.drop) times = times * V::set(of.scale);
      const bool drop = of.drop;
      const uint32_t threshold = of.threshold, *const words = t.words;
      A *const score = t.score, *const weight = t.weight, *const weight_pos = t.weight_pos;
      each_vector(of, h, block.n, [&](int64_t at, int, int) GK_INLINED {
        V w = V::load(weight + at) * times;
        if (drop) w = V::keep(w, words + at, threshold);
        w.store(weight + at);
        if (pair) V::where_positive(V::load(score + at), w).store(weight_pos + at);
      });
    });
  }
  static void draw(const Heads<A>& of, const Scratch<A>& t, const int32_t* ids, int n) {
    const int lane = of.first_head % 4, group = of.first_head / 4;
    if (of.stride >= 4 && lane == 0) {
      philox_words(of.seed, ids, n, group, (of.heads + 3) / 4, of.stride, t.words);
      return;
    }
    for (int h = -lane, g = group; h < of.heads; h += 4, ++g) {
      philox_words(of.seed, ids, n, g, 1, 4, t.padded);
      const int from = h < 0 ? -h : 0, to = of.stride - h < 4 ? of.stride - h : 4;
      for (int e = 0; e < n; ++e) {
        for (int k = from; k < to; ++k) t.words[e * of.stride + h + k] = t.padded[e * 4 + k];
      }
    }
  }

  static constexpr HeadLoops<A> kTable = {
      gat_score, gat_alpha, raise_top, gradients<false>, gradients<true>, exponentials, weigh};
};

template <class A, int kHeads>
const HeadLoops<A>& loops_of(int heads) {
  if constexpr (kHeads > 1) {
    if (heads < kHeads) return loops_of<A, kHeads / 2>(heads);
  }
  return Loops<A, kHeads>::kTable;
}
template <class A>
const HeadLoops<A>& head_loops(int64_t heads) {
  return loops_of<A, Vec<A>::kWidth>(slot<A>(heads));
}

}  // namespace GK_ISA
}  // namespace gatkernels
