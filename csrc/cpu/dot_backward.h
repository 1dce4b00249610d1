// Backward of dot products: of destinations by CSR, of sources by CSC. Per edge, with
// alpha, gain = <dO_i, v_j> + <dEo_i, edge_e> and dl = alpha (m gain - delta):
//   grad_q += scale dl k,   grad_edge_query += scale dl edge_e,
//   grad_k += scale dl q,   grad_v += alpha m dO,
//   grad_edge = sum over heads of scale dl edge_query + alpha m dEo.
#pragma once
#include "dot.h"
#include "fields.h"

namespace gatkernels {
namespace GK_ISA {

// Rows of which two kinds meet in logits and two in gains: queries and gradients of results of
// destinations, keys and values of sources.
template <class T>
struct DotEnd {
  Gather<T> first, second;
};

template <class T, class A, class Params>
struct DotBackwardJob {
  static constexpr bool kBySource = std::is_same_v<Params, DotSources>;
  using V = Vec<A>;
  const Params& p;
  const Edges& edges;
  Heads<A> of;
  HeadMap<A> map, v_map;
  DotEnd<T> own, other;
  DotEnd<T> of_edges;  // what features of edges meet, rows of destinations
  EdgeFeatures<T, A> edge;
  const A* fields;  // of each destination [3, H]: row maximum, 1 / sum, delta
  int64_t fields_stride;
  A scale;
  int heads;
  int64_t block;

  DotBackwardJob(const Params& params, const Edges& edges_)
      : p(params),
        edges(edges_),
        of(params.shape, params.scores.dropout),
        map(params.shape),
        v_map(with_channels(params.shape, params.v.channels)),
        own(kBySource ? sources() : destinations()),
        other(kBySource ? destinations() : sources()),
        of_edges{{params.scores.edge_query, edges_}, {params.grads.edge_out, edges_}},
        edge(params.scores, params.shape, edges_),
        fields(static_cast<const A*>(params.fields)),
        fields_stride(4 * params.shape.heads),
        scale(A(params.scores.scale)),
        heads(int(params.shape.heads)),
        block(edges_in_cache((map.width + v_map.width + edge.features) * int64_t(sizeof(T)))) {}

  DotEnd<T> destinations() const { return {{p.scores.q, edges}, {p.grads.out, edges}}; }
  DotEnd<T> sources() const { return {{p.scores.k, edges}, {p.v.rows, edges}}; }

  // Of an edge, all but the rows of `other`.
  GK_INLINE void prefetch(const int32_t* at, const int32_t* eid) const {
    if (edge) edge.prefetch(eid);
    if constexpr (!kBySource) {
      if (has_grad_edge()) edge.prefetch_gradient(p.grad_edge, eid);
    } else {
      prefetch_fields<A>({fields, fields_stride}, heads, at, other.first.col_end);
      if (edge) {
        prefetch_row(of_edges.first, 0, edge.width(), at);
        prefetch_row(of_edges.second, 0, edge.width(), at);
      }
    }
  }

  // The rows of `own` in the type of sums; those that features of edges meet, by destination.
  struct OwnRows {
    const A *first, *second, *query, *grad_edge_out;
  };
  int64_t own_width() const { return map.width + v_map.width + (kBySource ? 0 : 2 * edge.width()); }
  OwnRows rows_of(int64_t i, const Scratch<A>& t) const {
    A* to = t.row_pos;
    OwnRows rows{};
    rows.first = widened(row_of(own.first, i), map.width, to);
    rows.second = widened(row_of(own.second, i), v_map.width, to += map.width);
    if (kBySource || !edge) return rows;
    rows.query = widened(row_of(of_edges.first, i), edge.width(), to += v_map.width);
    rows.grad_edge_out = widened(row_of(of_edges.second, i), edge.width(), to + edge.width());
    return rows;
  }

  // weight = alpha m and score = scale dl for the edges `found` between row i and others.
  void terms(int64_t i, const OwnRows& rows, const Block& found, const Scratch<A>& t) const {
    const int32_t *at = found.col, *eid = found.eid;
    const int n = found.n;
    if (map.channels == v_map.channels) {
      sum_both(rows, at, eid, n, t);
    } else {  // rare
      sum_dots<false>(map, rows.first, other.first, at, n, t.weight,
                      [&](int e) GK_INLINED { prefetch(at + e, eid + e); });
      sum_dots<false>(v_map, rows.second, other.second, at, n, t.score, [](int) {});
    }
    for (int e = 0; edge && e < n; ++e) {
      A* logit = t.weight + e * of.stride;
      A* gain = t.score + e * of.stride;
      if constexpr (kBySource) {
        edge.add_dots(row_of(of_edges.first, at[e]), eid[e], logit);
        edge.add_dots(row_of(of_edges.second, at[e]), eid[e], gain);
      } else {
        edge.add_dots(rows.query, eid[e], logit);
        edge.add_dots(rows.grad_edge_out, eid[e], gain);
      }
    }
    multiply(scale, n * of.stride, t.weight);
    const auto* grad_alpha = static_cast<const A*>(p.grads.alpha);
    if (kBySource) {
      of.loops.gradients_of_edges(of, {fields, fields_stride}, grad_alpha, found, t);
    } else {
      of.loops.gradients_of_row(of, {fields + i * fields_stride, 0}, grad_alpha, found, t);
    }
    multiply(scale, n * of.stride, t.score);
  }
  // weight = <q, k> and score = <dO, v>, of rows of the same width.
  void sum_both(const OwnRows& rows, const int32_t* at, const int32_t* eid, int n,
                const Scratch<A>& t) const {
    A* const totals[] = {t.weight, t.score};
    sum_heads<unrolls<T>()>(
        map, n, totals,
        [&](int e) GK_INLINED {
          const A *own_first = rows.first, *own_second = rows.second;
          const T *first = row_of(other.first, at[e]), *second = row_of(other.second, at[e]);
          return [own_first, own_second, first, second](int64_t f, int lanes) GK_INLINED {
            return Kinds<A, 2>{
                {load_row<A>(own_first + f, lanes) * load_row<A>(first + f, lanes),
                 load_row<A>(own_second + f, lanes) * load_row<A>(second + f, lanes)}};
          };
        },
        [&](int e, int64_t f, int64_t features) GK_INLINED {
          const int64_t count = prefetched<T>(features);
          prefetch_row(other.first, f, count, at + e);
          prefetch_row(other.second, f, count, at + e);
          if (f == 0) prefetch(at + e, eid + e);
        });
  }

  bool has_grad_edge() const {
    if constexpr (kBySource)
      return false;
    else
      return p.grad_edge != nullptr;
  }
  void grad_of_edge(const OwnRows& rows, int32_t eid, const A* dl, const A* w) const {
    if constexpr (!kBySource) {
      T* to = static_cast<T*>(p.grad_edge) + eid * edge.features;
      for (int64_t f = 0; f < edge.features; f += V::kWidth) {
        const int lanes = edge.lanes_at(f);
        V sum = V::set(A(0));
        for (int h = 0; h < heads; ++h) {
          const int64_t place = h * edge.features + f;
          sum = V::fma(V::set(dl[h]), V::load(rows.query + place, lanes), sum);
          sum = V::fma(V::set(w[h]), V::load(rows.grad_edge_out + place, lanes), sum);
        }
        sum.store(to + f, lanes);
      }
    }
  }

  // Edges [begin, end) of row i, block by block, into its sums: those of the gradient of `first`,
  // then those of `second` by source, of edge_query by destination.
  int64_t second_width() const { return kBySource ? v_map.width : edge.width(); }
  int64_t partial_size() const { return map.width + second_width(); }
  void run(int64_t i, int64_t begin, int64_t end, A* sums, const Scratch<A>& t) const {
    const OwnRows rows = rows_of(i, t);
    A* second = sums + map.width;
    for (int64_t k = begin; k < end; k += block) {
      const int n = int(end - k < block ? end - k : block);
      const Block found = block_from(edges, k, other.first.col_end, n);
      const int32_t *at = found.col, *eid = found.eid;
      const bool carry = k != begin;
      terms(i, rows, found, t);
      add_rows(map, other.first, at, n, t.score, carry, sums);
      if (kBySource) {
        add_rows(v_map, other.second, at, n, t.weight, carry, second);
      } else if (edge) {
        edge.accumulate(eid, n, t.score, of.stride, carry, second);
        for (int e = 0; has_grad_edge() && e < n; ++e) {
          grad_of_edge(rows, eid[e], t.score + e * of.stride, t.weight + e * of.stride);
        }
      }
    }
  }

  void finish(int64_t i, const A* sums) const {
    void *first, *second;
    if constexpr (kBySource) {
      first = p.grad_k, second = p.grad_v;
    } else {
      first = p.grad_q, second = p.grad_edge_query;
    }
    store_row<A>(sums, map.width, static_cast<T*>(first) + i * map.width);
    store_row<A>(sums + map.width, second_width(), static_cast<T*>(second) + i * second_width());
  }
  void rows(int64_t, int64_t begin, int64_t end, const Scratch<A>& t) const {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = edges.rowptr[i], last = edges.rowptr[i + 1];
      if (first == last) std::memset(t.row, 0, size_t(partial_size()) * sizeof(A));
      run(i, first, last, t.row, t);
      finish(i, t.row);
    }
  }
  void chunk(int64_t i, int64_t begin, int64_t end, A* partial, const Scratch<A>& t) const {
    run(i, begin, end, partial, t);
  }
  void merge(int64_t i, int64_t, A* partials, int64_t count, const Scratch<A>&) const {
    finish(i, add_partials(partials, count, partial_size()));
  }
  int64_t scratch_width() const {
    return own_width() > partial_size() ? own_width() : partial_size();
  }
};

// fields of destinations: row maximum, 1 / sum, and
// delta = <dO, out> + <dEo, edge_out> + sum over edges of alpha grad_alpha.
template <class T, class A>
static Status dot_fields(const DotDestinations& p, const HeadMap<A>& v_map) {
  const int heads = v_map.heads;
  const HeadMap<A> edge_map(with_channels(p.shape, p.scores.features));
  if (edge_map.head == nullptr) return Status::kOutOfMemory;
  const Gather<T> grad(p.grads.out, p.csr), grad_edge_out(p.grads.edge_out, p.csr);
  return run_nodes<A>(p.csr.rows, p.shape, 0, [&](int64_t i, const Scratch<A>& t) {
    A* delta = t.sum;
    dot_heads(v_map, static_cast<const T*>(p.out) + i * v_map.width, row_of(grad, i), delta);
    if (edge_map.width > 0) {
      const T* edge_out = static_cast<const T*>(p.edge_out) + i * edge_map.width;
      dot_heads(edge_map, edge_out, row_of(grad_edge_out, i), t.head);
      for (int h = 0; h < heads; ++h) delta[h] += t.head[h];
    }
    add_alpha_gradients(p.csr, i, heads, p.alpha, p.grads.alpha, delta);
    put_fields(i, heads, p.stats, delta, p.fields);
  });
}

template <class T, class A>
static Status dot_destinations(const DotDestinations& p) {
  const DotBackwardJob<T, A, DotDestinations> job(p, p.csr);
  if (job.map.head == nullptr || job.v_map.head == nullptr) return Status::kOutOfMemory;
  const Status status = dot_fields<T>(p, job.v_map);
  if (status != Status::kOk) return status;
  return run_edges<A>(p.csr, p.shape, job.scratch_width(), job);
}

template <class T, class A>
static Status dot_sources(const DotSources& p) {
  const DotBackwardJob<T, A, DotSources> job(p, p.csc);
  if (job.map.head == nullptr || job.v_map.head == nullptr) return Status::kOutOfMemory;
  return run_edges<A>(p.csc, p.shape, job.scratch_width(), job);
}

}  // namespace GK_ISA
}  // namespace gatkernels
