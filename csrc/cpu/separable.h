// Separable scores: GAT's, and its forward. Names and formulas as in gatkernels/reference.py.
#pragma once
#include "forward.h"

namespace gatkernels {
namespace GK_ISA {

template <class A>
struct GatScorer {
  static constexpr int block = kBlock;
  static constexpr bool kSigned = true;  // sets Scratch::score, too
  GatTerms<A> terms;                     // `own` is of destination 0
  int64_t own_stride;

  template <class Params, class T>
  GatScorer(const Params& p, const HeadMap<A>&, const Gather<T>&)
      : terms{static_cast<const A*>(p.scores.dst.data), static_cast<const A*>(p.scores.src.data),
              p.scores.src.stride, static_cast<const A*>(p.scores.edge),
              A(p.scores.negative_slope)},
        own_stride(p.scores.dst.stride) {}

  void score(const Heads<A>& of, int64_t row, const Block& edges, const Scratch<A>& t, A* top,
             bool carry) const {
    GatTerms<A> of_row = terms;
    of_row.own += row * own_stride;
    of.loops.gat_score(of, of_row, edges, t, top, carry);
  }
};

template <class T, class A>
static Status gat_forward(const GatForward& p) {
  return run_forward<T, A, GatScorer<A>>(p, {p.out, p.out_pos, p.stats});
}
template <class T, class A>
static Status gat_alpha(const GatAlpha& p) {
  return run_alpha<T, A, GatScorer<A>>(p, {nullptr, 0, 0});
}

}  // namespace GK_ISA
}  // namespace gatkernels
