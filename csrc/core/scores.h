// How an edge scores by channel, and what its score's gradient reaches: the scorers of the CPU's
// and the GPU's loops.
//
// Row-wise scores are l = sum_c term(att, x_j, x_i)[c]. V is a vector of channels: Vec<A> on a CPU,
// a lane's A on a GPU. An edge's feature is added to x_j before a scorer sees it, so that what
// reaches x_j reaches it, too. A new scorer is a struct with `term` and `reach`, a RowScorer, and a
// line of with_scorer. (Separable scores, l = leaky_relu(s_j + s_i + s_e) of scalars, are GAT's
// alone, and have kernels of their own.)
#pragma once
#include <type_traits>
#include <utility>

#include "host_device.h"

namespace gatkernels {

// s > 0 ? a : b, by channel
template <class V>
GK_INLINE V if_positive(V s, V a, V b) {
  if constexpr (std::is_floating_point_v<V>) {
    return s > V(0) ? a : b;
  } else {
    return V::if_positive(s, a, b);
  }
}
// s < 0 ? a : b, or either where s is -0
template <class V>
GK_INLINE V if_negative(V s, V a, V b) {
  if constexpr (std::is_floating_point_v<V>) {
    return s < V(0) ? a : b;
  } else {
    return V::if_negative(s, a, b);
  }
}
// a b + c
template <class V>
GK_INLINE V multiply_add(V a, V b, V c) {
  if constexpr (std::is_floating_point_v<V>) {
    return a * b + c;
  } else {
    return V::fma(a, b, c);
  }
}

// d term / d (x_j, x_i, att)
template <class V>
struct Reach {
  V j, i, att;
};

// How a gradient adds up over edges: here the sum of dl reach.PART, PART being j, i or att. On a
// CPU such a struct has one vector, `sum`, which kernels load and store, and is given dl and the
// row of its own end (x_j for the gradient of x_j, else x_i) as its scorer has prepared them; on a
// GPU as much as it likes.
template <class V, V Reach<V>::* kPart>
struct ReachSum {
  V sum;

  template <class Scorer>
  GK_INLINE void add(const Scorer& scorer, V dl, const typename Scorer::Att& att, V x_j, V x_i) {
    sum = multiply_add(dl, scorer.reach(att, x_j, x_i).*kPart, sum);
  }
  // The gradient, at the end. On a GPU `total` is the sum of dl, where that is no gradient of att.
  template <class Scorer>
  GK_INLINE V gradient(const Scorer&, const typename Scorer::Att&, V /*total*/) const {
    return sum;
  }
};

// What a scorer has unless it says otherwise.
template <class V>
struct RowwiseScorer {
  V slope, one;

  using Att = V;  // att as a scorer likes it
  GK_INLINE Att prepare(V att) const { return att; }
  using Dl = V;  // dl, and a row for all its edges, as the sums of a CPU like them
  GK_INLINE Dl prepare_dl(V dl) const { return dl; }
  GK_INLINE V prepare_own(V x) const { return x; }

  using GradJ = ReachSum<V, &Reach<V>::j>;
  using GradI = ReachSum<V, &Reach<V>::i>;
  using GradAtt = ReachSum<V, &Reach<V>::att>;
};

// term = att leaky_relu(u), u = x_j + x_i (Brody et al., 2022)
template <class V>
struct Gatv2 : RowwiseScorer<V> {
  static constexpr bool kLane = std::is_floating_point_v<V>;
  struct Att {
    V above, below;  // what u is multiplied with above zero and below
  };
  GK_INLINE Att prepare(V att) const { return {att, this->slope * att}; }
  GK_INLINE V step(V u) const { return if_positive(u, this->one, this->slope); }

  GK_INLINE V term(const Att& att, V x_j, V x_i) const {
    const V u = x_j + x_i;
    return if_negative(u, att.below, att.above) * u;
  }
  GK_INLINE Reach<V> reach(const Att& att, V x_j, V x_i) const {
    const V u = x_j + x_i, steepness = if_positive(u, att.above, att.below);
    return {steepness, steepness, step(u) * u};
  }

  // On a CPU the sign bit of minus u says whether u is above zero, as it is never -0 where minus x
  // of the own end is not: a comparison saved. sum dl att leaky'(u) = att sum dl leaky'(u).
  struct Dl {
    V above, below;  // dl leaky'(u) above zero and below
  };
  GK_INLINE Dl prepare_dl(V dl) const { return {dl, this->slope * dl}; }
  GK_INLINE V prepare_own(V x) const { return V::set(0) - x; }

  template <bool kOwnIsJ>
  struct VectorGrad {
    V sum;

    GK_INLINE void add(const Gatv2&, const Dl& dl, const Att&, V x_j, V x_i) {
      const V minus_u = kOwnIsJ ? x_j - x_i : x_i - x_j;
      sum = sum + if_negative(minus_u, dl.above, dl.below);
    }
    GK_INLINE V gradient(const Gatv2&, const Att& att, V) const { return att.above * sum; }
  };
  struct VectorGradAtt {  // sum dl leaky(u)
    V sum;

    GK_INLINE void add(const Gatv2&, const Dl& dl, const Att&, V x_j, V x_i) {
      const V minus_u = x_i - x_j;
      sum = multiply_add(if_negative(minus_u, dl.above, dl.below), minus_u, sum);
    }
    GK_INLINE V gradient(const Gatv2&, const Att&, V) const { return V::set(0) - sum; }
  };
  // On a GPU: sum dl att leaky'(u) = att (slope sum dl + (1 - slope) sum of dl where u > 0)
  struct LaneGrad {
    V positive;

    GK_INLINE void add(const Gatv2&, V dl, const Att&, V x_j, V x_i) {
      if (x_j + x_i > V(0)) positive += dl;
    }
    GK_INLINE V gradient(const Gatv2&, const Att& att, V total) const {
      return att.below * total + (att.above - att.below) * positive;
    }
  };
  // sum dl leaky(u) = slope sum of dl u where u <= 0, + sum of dl u where u > 0
  struct LaneGradAtt {
    V negative, positive;

    GK_INLINE void add(const Gatv2&, V dl, const Att&, V x_j, V x_i) {
      const V u = x_j + x_i;
      if (u > V(0)) {
        positive += dl * u;
      } else {
        negative += dl * u;
      }
    }
    GK_INLINE V gradient(const Gatv2& scorer, const Att&, V) const {
      return scorer.slope * negative + positive;
    }
  };
  using GradI = std::conditional_t<kLane, LaneGrad, VectorGrad<false>>;
  using GradJ = std::conditional_t<kLane, LaneGrad, VectorGrad<true>>;
  using GradAtt = std::conditional_t<kLane, LaneGradAtt, VectorGradAtt>;
};

enum class RowScorer { kGatv2 };
// By the names of gatkernels/ops/call.py
constexpr std::pair<const char*, RowScorer> kRowScorers[] = {{"gatv2", RowScorer::kGatv2}};

template <template <class V> class Scorer>
struct ScorerOf {
  template <class V>
  using type = Scorer<V>;
};

// visit(ScorerOf<Scorer>()) of that scorer: kernels are compiled for those listed here.
template <class Visit>
auto with_scorer(RowScorer scorer, Visit visit) {
  switch (scorer) {
    case RowScorer::kGatv2:
      return visit(ScorerOf<Gatv2>());
  }
  __builtin_unreachable();  // bindings make them from the list
}

}  // namespace gatkernels
