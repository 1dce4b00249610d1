// Backward of separable scores: a prologue over destinations, then one pass over CSC by sources.
//
// Walking the edges out of j, only rows of the output's gradient are gathered; x_j enters once per
// row, because sum_e alpha m leaky' <dO_i, x_j> = <sum_e alpha m leaky' dO_i, x_j>. Where scores
// come from x, its row's part in their gradients is added while the row is at hand.
#pragma once
#include "fields.h"
#include "node_scores.h"
#include "separable.h"

namespace gatkernels {
namespace GK_ISA {

// What a destination computes of its own row: delta = <dO, out>, which its edges find among the
// fields [4, H] (score_dst, row maximum, 1 / sum, delta), and
// grad_dst = (1 - slope) (<dO, out_pos> - delta share).
template <class T, class A>
struct SeparablePrologue {
  const GatDestinations& p;
  HeadMap<A> map;
  const A* src;
  const A* dst;
  const A* edge_score;  // or null
  int heads;
  int64_t width;
  A slope;

  explicit SeparablePrologue(const GatDestinations& params)
      : p(params),
        map(params.shape),
        src(static_cast<const A*>(params.scores.src.data)),
        dst(static_cast<const A*>(params.scores.dst.data)),
        edge_score(static_cast<const A*>(params.scores.edge)),
        heads(int(params.shape.heads)),
        width(map.width),
        slope(A(params.scores.negative_slope)) {}

  void row(int64_t i, A* dot, A* dot_pos) const {
    const T* grad_row = static_cast<const T*>(p.grad.data) + i * p.grad.stride;
    dot_heads(map, static_cast<const T*>(p.out) + i * width, grad_row, dot);
    dot_heads(map, static_cast<const A*>(p.out_pos) + i * width, grad_row, dot_pos);
    add_grad_alpha(i, dot, dot_pos);
    const A* stats = static_cast<const A*>(p.stats) + i * 3 * heads;
    const A* score_dst = dst + i * p.scores.dst.stride;
    A* field = static_cast<A*>(p.fields) + i * 4 * heads;
    A* grad_dst = static_cast<A*>(p.grad_dst.data) + i * p.grad_dst.stride;
    for (int h = 0; h < heads; ++h) {
      field[h] = score_dst[h];
      field[heads + h] = stats[h];
      field[2 * heads + h] = stats[heads + h];
      field[3 * heads + h] = dot[h];
      const bool used = stats[heads + h] != A(0);  // without edges, dO may not be finite
      grad_dst[h] = used ? (A(1) - slope) * (dot_pos[h] - dot[h] * stats[2 * heads + h]) : A(0);
    }
  }
  // The attention output's own gradient joins delta: sum_e alpha_e m_e d alpha_e.
  void add_grad_alpha(int64_t i, A* dot, A* dot_pos) const {
    const A* score_dst = dst + i * p.scores.dst.stride;
    add_alpha_gradients(p.csr, i, heads, p.alpha, p.grad_alpha, dot);
    add_alpha_gradients(p.csr, i, heads, p.alpha, p.grad_alpha, dot_pos, [&](int64_t edge, int h) {
      const int64_t j = p.csr.col[edge], at = int64_t(p.csr.eid[edge]) * heads + h;
      const A s = src[j * p.scores.src.stride + h] + score_dst[h];
      return s + (edge_score ? edge_score[at] : A(0)) > A(0);
    });
  }
};

template <class T, class A>
struct SeparableBackwardJob {
  using V = Vec<A>;
  const GatSources& p;
  Heads<A> of;
  HeadMap<A> map;
  Gather<T> grad;
  const A* fields;  // of each destination, see above
  int64_t fields_stride;
  const A* src;
  const A* edge_score;  // or null
  int heads;
  int64_t width;
  A slope;
  AttGradient<T, A> att;

  SeparableBackwardJob(const GatSources& params, const AttParts<A>& att_parts)
      : p(params),
        of(params.shape, params.scores.dropout),
        map(params.shape),
        grad(params.grad, params.csc),
        fields(static_cast<const A*>(params.fields)),
        fields_stride(4 * params.shape.heads),
        src(static_cast<const A*>(params.scores.src.data)),
        edge_score(static_cast<const A*>(params.scores.edge)),
        heads(int(params.shape.heads)),
        width(map.width),
        slope(A(params.scores.negative_slope)),
        att{map, static_cast<const A*>(params.att_src), static_cast<const A*>(params.att_dst),
            att_parts} {}

  // Partial result of a chunk: grad_src so far [H], then the two sums of rows.
  int64_t partial_size() const { return heads + 2 * width; }

  // score, weight = alpha for the edges of a block out of j, weight_pos = those of positive scores
  // (or what is to become them); sum (+)= -leaky' alpha delta
  void score(int64_t j, const Block& block, const Scratch<A>& t, A* sum, bool carry) const {
    const GatTerms<A> terms{src + j * p.scores.src.stride, fields, fields_stride, edge_score,
                            slope};
    of.loops.gat_alpha(of, terms, block, t, sum, carry, p.grad_edge != nullptr);
    if (p.grad_edge) {
      for (int e = 0; e < block.n; ++e) {
        A* grad_edge = static_cast<A*>(p.grad_edge) + int64_t(block.eid[e]) * heads;
        for (int h = 0; h < heads; ++h) grad_edge[h] = -t.weight_pos[e * of.stride + h];
      }
    }
  }
  // What needs each edge's own terms: the gradients of edge scores, and that of alpha.
  void edge_terms(int64_t j, const Block& block, const Scratch<A>& t, A* sum) const {
    const T* x = static_cast<const T*>(p.x.data) + j * p.x.stride;
    for (int e = 0; e < block.n; ++e) {
      const int64_t at = int64_t(block.eid[e]) * heads;
      const auto* grad_alpha = static_cast<const A*>(p.grad_alpha);
      auto* grad_edge = static_cast<A*>(p.grad_edge);
      if (grad_edge) dot_heads(map, grad.data + block.col[e] * grad.stride, x, t.head);
      for (int h = 0; h < heads; ++h) {
        const int k = e * of.stride + h;
        const A w = t.weight[k] * (t.score[k] > A(0) ? A(1) : slope);
        if (grad_alpha) sum[h] += w * grad_alpha[at + h];
        if (grad_edge)
          grad_edge[at + h] += w * (t.head[h] + (grad_alpha ? grad_alpha[at + h] : A(0)));
      }
    }
  }

  const T* x_of(int64_t j) const { return static_cast<const T*>(p.x.data) + j * p.x.stride; }
  T* grad_x_of(int64_t j) const { return static_cast<T*>(p.grad_x.data) + j * p.grad_x.stride; }
  // What the scores of node j pass on to x_j and att; `row`: the rest of grad_x, or null for zeros.
  void pass_on(int64_t j, const A* row, const A* grad_src, const Scratch<A>& t,
               int64_t part) const {
    const A* grad_dst = nullptr;
    if (att.dst) {  // with a vector past its end, which the loads below may touch
      std::memcpy(t.sum_pos, static_cast<const A*>(p.grad_dst.data) + j * p.grad_dst.stride,
                  size_t(heads) * sizeof(A));
      grad_dst = t.sum_pos;
    }
    att.add(x_of(j), row, grad_src, grad_dst, grad_x_of(j), part);
  }

  void finish_row(int64_t j, const A* sum, const A* row, const A* row_pos, const Scratch<A>& t,
                  int64_t part) const {
    A *dot = t.head, *signed_row = t.row_pos;  // of leaky' alpha m
    T* grad_x = grad_x_of(j);
    const V negative = V::set(slope), rest = V::set(A(1) - slope);
    for (int64_t f = 0; f < width; f += V::kWidth) {
      const int lanes = int(width - f < V::kWidth ? width - f : V::kWidth);
      const V all = V::load(row + f, lanes);
      V::fma(rest, V::load(row_pos + f, lanes), negative * all).store(signed_row + f);
      all.store(grad_x + f, lanes);
    }
    dot_heads(map, signed_row, x_of(j), dot);
    A* grad_src = static_cast<A*>(p.grad_src.data) + j * p.grad_src.stride;
    for (int h = 0; h < heads; ++h) grad_src[h] = dot[h] = dot[h] + sum[h];
    if (att.src) pass_on(j, row, dot, t, part);
  }

  // Of a node without edges out of it; where nothing comes through its score_dst (perhaps it has no
  // edges into it, either), its features may not be finite.
  void clear_row(int64_t j, const Scratch<A>& t, int64_t part) const {
    clear_values(grad_x_of(j), width);
    std::memset(static_cast<A*>(p.grad_src.data) + j * p.grad_src.stride, 0,
                size_t(heads) * sizeof(A));
    if (att.dst == nullptr) return;
    const A* grad_dst = static_cast<const A*>(p.grad_dst.data) + j * p.grad_dst.stride;
    bool passes = false;
    for (int h = 0; h < heads; ++h) passes = passes || grad_dst[h] != A(0);
    if (!passes) return;
    std::memset(t.head, 0, size_t(heads) * sizeof(A));
    pass_on(j, nullptr, t.head, t, part);
  }

  // Edges [begin, end) out of j, block by block. Where rows are `padded`, a vector past them may be
  // written: what is stored in pieces waits for memory when it is loaded as a vector.
  void run(int64_t j, int64_t begin, int64_t end, A* sum, A* row, A* row_pos, bool padded,
           const Scratch<A>& t) const {
    for (int64_t edge = begin; edge < end; edge += kBlock) {
      const int n = int(end - edge < kBlock ? end - edge : kBlock);
      const bool carry = edge != begin;
      const Block block = block_from(p.csc, edge, grad.col_end, n);
      score(j, block, t, sum, carry);
      if (of.drop || p.grad_edge) of.loops.weigh(of, block, t, nullptr, true);
      accumulate<A>(map, grad, block.col, n, t.weight, t.weight_pos, of.stride, carry, row, row_pos,
                    nullptr, padded);
      if (p.grad_edge || p.grad_alpha) edge_terms(j, block, t, sum);
    }
  }

  void rows(int64_t task, int64_t begin, int64_t end, const Scratch<A>& t) const {
    const int64_t* rowptr = p.csc.rowptr;
    for (int64_t j = begin; j < end; ++j) {
      if (rowptr[j] == rowptr[j + 1]) {
        clear_row(j, t, task);
        continue;
      }
      run(j, rowptr[j], rowptr[j + 1], t.sum, t.row, t.row_pos, true, t);
      finish_row(j, t.sum, t.row, t.row_pos, t, task);
    }
  }
  void chunk(int64_t j, int64_t begin, int64_t end, A* sum, const Scratch<A>& t) const {
    run(j, begin, end, sum, sum + heads, sum + heads + width, false, t);
  }
  void merge(int64_t j, int64_t index, A* partials, int64_t count, const Scratch<A>& t) const {
    A* total = add_partials(partials, count, partial_size());
    finish_row(j, total, total + heads, total + heads + width, t,
               task_count(p.csc.rowptr, p.csc.rows) + index);
  }
};

template <class T, class A>
static Status gat_destinations(const GatDestinations& p) {
  const SeparablePrologue<T, A> prologue(p);
  if (prologue.map.head == nullptr) return Status::kOutOfMemory;
  return run_nodes<A>(p.csr.rows, p.shape, prologue.width,
                      [&](int64_t i, const Scratch<A>& t) { prologue.row(i, t.sum, t.sum_pos); });
}

template <class T, class A>
static Status gat_sources(const GatSources& p) {
  const int64_t width = p.shape.heads * p.shape.channels;
  const AttParts<A> parts(p.att_src ? row_parts(p.csc) : 0, p.att_dst ? 2 : 1, width);
  const SeparableBackwardJob<T, A> job(p, parts);
  if (job.map.head == nullptr || parts.data == nullptr) return Status::kOutOfMemory;
  const Status status = run_edges<A>(p.csc, p.shape, width, job);
  if (p.att_src) parts.sum(static_cast<A*>(p.grad_att));
  return status;
}

}  // namespace GK_ISA
}  // namespace gatkernels
