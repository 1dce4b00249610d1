// Backward of row-wise scores: a prologue over destinations, a pass over CSR for grad_dst and
// grad_att, a pass over CSC for grad_src. Per edge, with dl = alpha (m <dO, x_j> - delta) and what
// the scorer says of its score:
//   grad_dst += dl reach.i,  grad_att += dl reach.att,  grad_src += dl reach.j + alpha m dO.
#pragma once
#include "fields.h"
#include "node_scores.h"
#include "rowwise.h"

namespace gatkernels {
namespace GK_ISA {

// Of one side: of destinations, by CSR, or of sources, by CSC.
template <class T, class A, class Scorer, class Params>
struct RowwiseBackwardJob {
  static constexpr bool kBySource = std::is_same_v<Params, RowwiseSources>;
  using V = Vec<A>;
  const Params& p;
  const Edges& edges;
  Heads<A> of;
  HeadMap<A> map;
  Gather<T> x, grad, x_dst;
  const A* fields;  // of each destination [3, H]: row maximum, 1 / sum, delta
  int64_t fields_stride;
  RowScores<T, A, Scorer> scores;
  int heads;
  int64_t width;
  const AttParts<A>* att_parts;  // of tasks, then of long rows; by destination

  RowwiseBackwardJob(const Params& params, const Edges& edges_, const AttParts<A>* att_parts_)
      : p(params),
        edges(edges_),
        of(params.shape, params.scores.dropout),
        map(params.shape),
        x(params.x, edges_),
        grad(params.grad, edges_),
        x_dst(params.scores.dst, edges_),
        fields(static_cast<const A*>(params.fields)),
        fields_stride(4 * params.shape.heads),
        scores(params, map, x),
        heads(int(params.shape.heads)),
        width(map.width),
        att_parts(att_parts_) {}

  const T* x_of(int64_t j) const { return x.data + j * x.stride; }
  const T* grad_of(int64_t i) const { return grad.data + i * grad.stride; }
  const T* dst_of(int64_t i) const { return x_dst.data + i * x_dst.stride; }

  void prologue(int64_t i, A* delta) const {
    dot_heads(map, static_cast<const T*>(p.out) + i * width, grad_of(i), delta);
    add_alpha_gradients(edges, i, heads, p.alpha, p.grad_alpha, delta);
    put_fields(i, heads, p.stats, delta, p.fields);
  }

  // weight = alpha m and score = dl for a block's edges between the row `own` and the others, the
  // sources' where kBySource, the destinations' else.
  void terms(int64_t own, const Block& block, const Scratch<A>& t) const {
    with_flag(scores.edge_rows != nullptr, [&](auto has_edges) GK_INLINED {
      sum_terms<decltype(has_edges)::value>(own, block.col, block.eid, block.n, t);
    });
    const auto* grad_alpha = static_cast<const A*>(p.grad_alpha);
    if (kBySource) {
      of.loops.gradients_of_edges(of, {fields, fields_stride}, grad_alpha, block, t);
    } else {
      of.loops.gradients_of_row(of, {fields + own * fields_stride, 0}, grad_alpha, block, t);
    }
  }
  // weight = logits, score = <dO, x_j>
  template <bool kEdges>
  void sum_terms(int64_t own, const int32_t* at, const int32_t* eid, int n,
                 const Scratch<A>& t) const {
    A* const totals[] = {t.weight, t.score};
    sum_heads<unrolls<T>(!kEdges)>(
        map, n, totals,
        [&](int e) GK_INLINED {
          const int64_t j = kBySource ? own : at[e], i = kBySource ? at[e] : own;
          const T *x_j = x_of(j), *x_i = dst_of(i), *grad_i = grad_of(i);
          const T* edge = kEdges ? scores.edge_row(eid[e]) : nullptr;
          return [this, x_j, x_i, grad_i, edge](int64_t f, int lanes) GK_INLINED {
            return Kinds<A, 2>{{scores.template term<kEdges>(x_j, x_i, edge, f, lanes),
                                load_row<A>(grad_i + f, lanes) * load_row<A>(x_j + f, lanes)}};
          };
        },
        [&](int e, int64_t f, int64_t features) GK_INLINED {
          const int64_t count = prefetched<T>(features);
          if (kBySource) {
            prefetch_row(grad, f, count, at + e, scores.distance);
            prefetch_row(x_dst, f, count, at + e, scores.distance);
            if (f == 0) prefetch_fields<A>({fields, fields_stride}, heads, at + e, grad.col_end);
          } else {
            prefetch_row(x, f, count, at + e, scores.distance);
          }
        });
  }

  // Over n edges and kN vectors of features: sums (+)= the scorer's for the gradient of the own
  // row, and other (+)= those for att (by destination) or sum alpha m dO (by source). kPlain: there
  // are no edge features.
  template <bool kPlain, HeadsOf kHeads, int kN>
  void accumulate_tile(int64_t own, const int32_t* at, const int32_t* eid, int n, int64_t feature,
                       bool carry, A* sums, A* other, const Scratch<A>& t) const {
    using Grad = std::conditional_t<kBySource, typename Scorer::GradJ, typename Scorer::GradI>;
    const Scorer& scorer = scores.scorer;
    const T* own_row = (kBySource ? x_of(own) : dst_of(own)) + feature;
    const int64_t left = width - feature;
    const int tail = left < kN * V::kWidth ? int(left - (kN - 1) * V::kWidth) : V::kWidth;
    Grad first[kN];
    typename Scorer::GradAtt second[kN];
    V fixed[kN];
    const TileHeads<A, kHeads, kN> heads_of(map, feature);
    unrolled<kN>([&](auto k) GK_INLINED {
      constexpr int f = k * V::kWidth;
      const int lanes = k == kN - 1 ? tail : V::kWidth;
      first[k].sum = carry ? V::load(sums + feature + f, lanes) : V::set(A(0));
      second[k].sum = carry ? V::load(other + feature + f, lanes) : V::set(A(0));
      fixed[k] = V::load(own_row + f, lanes);
      if (kPlain || !kBySource) fixed[k] = scorer.prepare_own(fixed[k]);
    });
    const auto sum = [&](auto whole) GK_INLINED {
      for (int e = 0; e < n; ++e) {
        const T* row = (kBySource ? dst_of(at[e]) : x_of(at[e])) + feature;
        const T* grad_row = grad_of(at[e]) + feature;
        const T* edge = kPlain ? nullptr : scores.edge_row(eid[e]);
        const A* dl = t.score + e * of.stride;
        const A* w = t.weight + e * of.stride;
        unrolled<kN>([&](auto k) GK_INLINED {
          constexpr int f = k * V::kWidth;
          const auto load = [&](const auto* p) GK_INLINED {
            return k < kN - 1 || whole() ? load_row<A>(p + f) : V::load(p + f, tail);
          };
          const V gathered = load(row), x_i = kBySource ? gathered : fixed[k];
          V key = kBySource ? fixed[k] : gathered;  // x_j, and the edge's feature
          if (!kPlain && edge) key = key + load(edge + feature);
          if (!kPlain && kBySource) key = scorer.prepare_own(key);
          const auto att = scorer.prepare(load(scores.att + feature));
          const V d = heads_of.template value<k>(dl);
          const auto prepared = scorer.prepare_dl(d);
          first[k].add(scorer, prepared, att, key, x_i);
          if constexpr (kBySource) {
            second[k].sum = V::fma(heads_of.template value<k>(w), load(grad_row), second[k].sum);
          } else {
            second[k].add(scorer, prepared, att, key, x_i);
            if (!kPlain && p.grad_edge) {
              T* to = static_cast<T*>(p.grad_edge) + int64_t(eid[e]) * width + feature + f;
              const V x = load(own_row);
              (d * scorer.reach(att, key, x).j).store(to, k == kN - 1 ? tail : V::kWidth);
            }
          }
        });
      }
    };
    if (kPlain && tail == V::kWidth) {  // with_flag would pass a copy of `sum`, in memory
      sum(std::true_type());
    } else {
      sum(std::false_type());
    }
    unrolled<kN>([&](auto k) GK_INLINED {
      const int lanes = k == kN - 1 ? tail : V::kWidth;
      first[k].sum.store(sums + feature + k * V::kWidth, lanes);
      second[k].sum.store(other + feature + k * V::kWidth, lanes);
    });
  }

  template <class... Rest>
  void accumulate_terms(int64_t own, const int32_t* at, const int32_t* eid, int n,
                        Rest... rest) const {
    each_tile<V>(width, [&](auto vectors, int64_t f) GK_INLINED {
      constexpr int kN = decltype(vectors)::value;
      if (scores.edge_rows) {
        accumulate_tile<false, HeadsOf::kLanes, kN>(own, at, eid, n, f, rest...);
      } else {
        with_heads<kN, V::kManyRegisters || !std::is_same_v<T, float>>(
            map, f, [&](auto heads_of) GK_INLINED {
              accumulate_tile<true, decltype(heads_of)::value, kN>(own, at, eid, n, f, rest...);
            });
      }
    });
  }

  // The gradient of the row `own`, from its sums; by destination also what they add to a part of
  // grad_att.
  T* result_of(int64_t own) const {
    if constexpr (kBySource)
      return static_cast<T*>(p.grad_src) + own * width;
    else
      return static_cast<T*>(p.grad_dst) + own * width;
  }
  void finish(int64_t own, const A* sums, const A* other, int64_t part) const {
    T* result = result_of(own);
    const Scorer& scorer = scores.scorer;
    const auto gradient = [&](auto of_sum, const A* from, int64_t f, int lanes) {
      of_sum.sum = V::load(from + f, lanes);
      return of_sum.gradient(scorer, scorer.prepare(V::load(scores.att + f, lanes)), V::set(A(0)));
    };
    A* to_att = kBySource ? nullptr : att_parts->part(part);
    for (int64_t f = 0; f < width; f += V::kWidth) {
      const int lanes = width - f < V::kWidth ? int(width - f) : V::kWidth;
      if constexpr (kBySource) {
        const V grad = gradient(typename Scorer::GradJ(), sums, f, lanes);
        (grad + V::load(other + f, lanes)).store(result + f, lanes);
      } else {
        gradient(typename Scorer::GradI(), sums, f, lanes).store(result + f, lanes);
        const V grad = gradient(typename Scorer::GradAtt(), other, f, lanes);
        (V::load(to_att + f) + grad).store(to_att + f);
      }
    }
  }

  void clear(int64_t own) const { clear_values(result_of(own), width); }

  // Edges [begin, end) of the row `own`, block by block.
  void run(int64_t own, int64_t begin, int64_t end, A* sums, A* other, const Scratch<A>& t) const {
    const int64_t block = scores.block_of(width, kBySource ? 2 : 1);
    for (int64_t edge = begin; edge < end; edge += block) {
      const int n = int(end - edge < block ? end - edge : block);
      const Block found = block_from(edges, edge, grad.col_end, n);
      terms(own, found, t);
      accumulate_terms(own, found.col, found.eid, n, edge != begin, sums, other, t);
    }
  }

  // A partial result is two rows of sums [2, H * C].
  int64_t partial_size() const { return 2 * width; }
  void rows(int64_t task, int64_t begin, int64_t end, const Scratch<A>& t) const {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t first = edges.rowptr[row], last = edges.rowptr[row + 1];
      if (first == last) {
        clear(row);
        continue;
      }
      run(row, first, last, t.row, t.row_pos, t);
      finish(row, t.row, t.row_pos, task);
    }
  }
  void chunk(int64_t row, int64_t begin, int64_t end, A* partial, const Scratch<A>& t) const {
    run(row, begin, end, partial, partial + width, t);
  }
  void merge(int64_t row, int64_t index, A* partials, int64_t count, const Scratch<A>&) const {
    const A* sums = add_partials(partials, count, partial_size());
    finish(row, sums, sums + width, task_count(edges.rowptr, edges.rows) + index);
  }
};

template <class T, class A>
static Status rowwise_destinations(const RowwiseDestinations& p) {
  return with_scorer(p.scorer, [&](auto scorer) {
    using Scorer = typename decltype(scorer)::template type<Vec<A>>;
    const AttParts<A> parts(row_parts(p.csr), 1, p.shape.heads * p.shape.channels);
    const RowwiseBackwardJob<T, A, Scorer, RowwiseDestinations> job(p, p.csr, &parts);
    if (job.map.head == nullptr || parts.data == nullptr) return Status::kOutOfMemory;
    Status status = run_nodes<A>(p.csr.rows, p.shape, job.width,
                                 [&](int64_t i, const Scratch<A>& t) { job.prologue(i, t.sum); });
    if (status == Status::kOk) status = run_edges<A>(p.csr, p.shape, job.width, job);
    parts.sum(static_cast<A*>(p.grad_att));
    return status;
  });
}

template <class T, class A>
static Status rowwise_sources(const RowwiseSources& p) {
  return with_scorer(p.scorer, [&](auto scorer) {
    using Scorer = typename decltype(scorer)::template type<Vec<A>>;
    const RowwiseBackwardJob<T, A, Scorer, RowwiseSources> job(p, p.csc, nullptr);
    if (job.map.head == nullptr) return Status::kOutOfMemory;
    return run_edges<A>(p.csc, p.shape, job.width, job);
  });
}

}  // namespace GK_ISA
}  // namespace gatkernels
