// GAT backward on CPU: a prologue over destinations, then one pass over CSC by sources.
//
// Walking the edges out of j, only rows of the output's gradient are gathered; x_j enters once per
// row, because sum_e alpha m leaky' <dO_i, x_j> = <sum_e alpha m leaky' dO_i, x_j>.
#pragma once
#include "gat.h"

namespace gatkernels {
namespace GK_ISA {

template <class T, class A>
struct GatBackwardJob {
  using V = Vec<A>;
  const GatBackward& p;
  Scores<A> scores;
  HeadMap<A> map;
  Gather<T> grad;
  int heads;
  int64_t width;
  A slope;

  GatBackwardJob(const GatBackward& params, char* memory)
      : p(params),
        scores(params.shape, params.scores),
        map(params.shape.heads, params.shape.channels, memory),
        grad{static_cast<const T*>(params.grad.data), params.grad.stride,
             params.csc.col + params.csc.rowptr[params.csc.rows]},
        heads(int(params.shape.heads)),
        width(map.width),
        slope(A(params.scores.negative_slope)) {}

  // Partial result of a segment: grad_src so far [H], then the two sums of rows.
  size_t partial_bytes() const { return (size_t(heads) + 2 * size_t(width)) * sizeof(A); }
  const A* packed_of(int64_t i) const { return static_cast<const A*>(p.packed) + i * 4 * heads; }

  // delta = <dO, out> and grad_dst = (1 - slope) (<dO, out_pos> - delta share), per destination
  void prologue(int64_t i, A* dot, A* dot_pos) const {
    const T* grad_row = grad.data + i * grad.stride;
    dot_heads(map, static_cast<const A*>(p.out) + i * width, grad_row, dot);
    dot_heads(map, static_cast<const A*>(p.out_pos) + i * width, grad_row, dot_pos);
    if (p.grad_alpha) add_grad_alpha(i, dot, dot_pos);
    const A* stats = static_cast<const A*>(p.stats) + i * 3 * heads;
    const A* dst = scores.dst + i * scores.dst_stride;
    A* packed = static_cast<A*>(p.packed) + i * 4 * heads;
    A* grad_dst = static_cast<A*>(p.grad_dst.data) + i * p.grad_dst.stride;
    for (int h = 0; h < heads; ++h) {
      packed[h] = dst[h];
      packed[heads + h] = stats[h];
      packed[2 * heads + h] = stats[heads + h];
      packed[3 * heads + h] = dot[h];
      grad_dst[h] = (A(1) - slope) * (dot_pos[h] - dot[h] * stats[2 * heads + h]);
    }
  }
  // The attention output's own gradient joins delta: sum_e alpha_e m_e d alpha_e.
  void add_grad_alpha(int64_t i, A* dot, A* dot_pos) const {
    const A* dst = scores.dst + i * scores.dst_stride;
    for (int64_t edge = p.csr.rowptr[i]; edge < p.csr.rowptr[i + 1]; ++edge) {
      const A* src = scores.src + p.csr.col[edge] * scores.src_stride;
      const int64_t at = int64_t(p.csr.eid[edge]) * heads;
      for (int h = 0; h < heads; ++h) {
        const A s = src[h] + dst[h] + (scores.edge ? scores.edge[at + h] : A(0));
        const A share = static_cast<const A*>(p.alpha)[at + h] *
                        static_cast<const A*>(p.grad_alpha)[at + h];
        dot[h] += share;
        if (s > A(0)) dot_pos[h] += share;
      }
    }
  }

  // score and weight = leaky(score) - maximum for n edges out of j
  void score(int64_t j, int64_t edge, int n, A* score, A* weight) const {
    const int32_t* row = p.csc.col + edge;
    const int32_t* eid = p.csc.eid + edge;
    const A* src = scores.src + j * scores.src_stride;
    each_head<A>(heads, [&](int h, int lanes) {
      const V score_src = V::load(src + h, lanes);
      for (int e = 0; e < n; ++e) {
        const A* packed = packed_of(row[e]) + h;
        V s = score_src + V::load(packed, lanes);
        if (scores.edge) s = s + V::load(scores.edge + int64_t(eid[e]) * heads + h, lanes);
        s.store(score + e * heads + h, lanes);
        (scores.leaky(s) - V::load(packed + heads, lanes)).store(weight + e * heads + h, lanes);
      }
    });
  }
  V leaky_slope(V s) const { return V::if_positive(s, V::set(A(1)), scores.slope); }

  // weight <- alpha; sum (+)= -leaky' alpha delta
  void normalise(int64_t edge, int n, const A* score, A* weight, A* sum, bool carry) const {
    const int32_t* row = p.csc.col + edge;
    const int32_t* eid = p.csc.eid + edge;
    each_head<A>(heads, [&](int h, int lanes) {
      V total = carry ? V::load(sum + h, lanes) : V::set(A(0));
      for (int e = 0; e < n; ++e) {
        const A* packed = packed_of(row[e]) + h;
        const V alpha =
            V::load(weight + e * heads + h, lanes) * V::load(packed + 2 * heads, lanes);
        const V part = leaky_slope(V::load(score + e * heads + h, lanes)) *
                       (alpha * V::load(packed + 3 * heads, lanes));
        total = total - part;
        alpha.store(weight + e * heads + h, lanes);
        if (p.grad_edge) {
          (V::set(A(0)) - part)
              .store(static_cast<A*>(p.grad_edge) + int64_t(eid[e]) * heads + h, lanes);
        }
      }
      total.store(sum + h, lanes);
    });
  }
  // What needs each edge's own terms: the gradients of edge scores, and that of alpha.
  void edge_terms(int64_t j, int64_t edge, int n, const A* score, const A* weight, A* sum,
                  A* dot) const {
    const int32_t* row = p.csc.col + edge;
    const int32_t* eid = p.csc.eid + edge;
    const T* x = static_cast<const T*>(p.x.data) + j * p.x.stride;
    for (int e = 0; e < n; ++e) {
      const int64_t at = int64_t(eid[e]) * heads;
      const auto* grad_alpha = static_cast<const A*>(p.grad_alpha);
      auto* grad_edge = static_cast<A*>(p.grad_edge);
      if (grad_edge) dot_heads(map, grad.data + row[e] * grad.stride, x, dot);
      for (int h = 0; h < heads; ++h) {
        const A w = weight[e * heads + h] * (score[e * heads + h] > A(0) ? A(1) : slope);
        if (grad_alpha) sum[h] += w * grad_alpha[at + h];
        if (grad_edge) grad_edge[at + h] += w * (dot[h] + (grad_alpha ? grad_alpha[at + h] : A(0)));
      }
    }
  }

  void finish_row(int64_t j, A* sum, A* row, A* row_pos, A* dot) const {
    T* grad_x = static_cast<T*>(p.grad_x.data) + j * p.grad_x.stride;
    const V negative = V::set(slope), rest = V::set(A(1) - slope);
    for (int64_t f = 0; f < width; f += V::kWidth) {
      const int lanes = int(width - f < V::kWidth ? width - f : V::kWidth);
      const V all = V::load(row + f, lanes);
      V::fma(rest, V::load(row_pos + f, lanes), negative * all).store(row_pos + f, lanes);
      all.store(grad_x + f, lanes);
    }
    dot_heads(map, row_pos, static_cast<const T*>(p.x.data) + j * p.x.stride, dot);
    A* grad_src = static_cast<A*>(p.grad_src.data) + j * p.grad_src.stride;
    for (int h = 0; h < heads; ++h) grad_src[h] = dot[h] + sum[h];
  }

  // Rows of at most kBlock edges in all.
  void block(int64_t begin, int64_t end, GatScratch<A>& t) const {
    const int64_t* rowptr = p.csc.rowptr;
    const int64_t edge = rowptr[begin];
    const int n = int(rowptr[end] - edge);
    for (int64_t j = begin; j < end; ++j) {
      const int at = int(rowptr[j] - edge) * heads;
      score(j, rowptr[j], int(rowptr[j + 1] - rowptr[j]), t.score + at, t.weight + at);
    }
    exponentials(t.weight, n * heads);
    A* sums = t.sums;
    for (int64_t j = begin; j < end; ++j) {
      const int at = int(rowptr[j] - edge) * heads;
      normalise(rowptr[j], int(rowptr[j + 1] - rowptr[j]), t.score + at, t.weight + at,
                sums + (j - begin) * heads, false);
    }
    scores.dropout(t, p.csc.eid + edge, n);
    scores.positive(t, n);
    for (int64_t j = begin; j < end; ++j) {
      const int at = int(rowptr[j] - edge) * heads, count = int(rowptr[j + 1] - rowptr[j]);
      A* sum = sums + (j - begin) * heads;
      accumulate(map, grad, p.csc.col + rowptr[j], count, t.weight + at, t.weight_pos + at, false,
                 t.row, t.row_pos);
      if (p.grad_edge || p.grad_alpha) {
        edge_terms(j, rowptr[j], count, t.score + at, t.weight + at, sum, t.head_a);
      }
      finish_row(j, sum, t.row, t.row_pos, t.head_a);
    }
  }
  // Edges [begin, end) out of j, block by block.
  void run(int64_t j, int64_t begin, int64_t end, A* sum, A* row, A* row_pos,
           GatScratch<A>& t) const {
    for (int64_t edge = begin; edge < end; edge += kBlock) {
      const int n = int(end - edge < kBlock ? end - edge : kBlock);
      const bool carry = edge != begin;
      score(j, edge, n, t.score, t.weight);
      exponentials(t.weight, n * heads);
      normalise(edge, n, t.score, t.weight, sum, carry);
      scores.dropout(t, p.csc.eid + edge, n);
      scores.positive(t, n);
      accumulate(map, grad, p.csc.col + edge, n, t.weight, t.weight_pos, carry, row, row_pos);
      if (p.grad_edge || p.grad_alpha) {
        edge_terms(j, edge, n, t.score, t.weight, sum, t.head_a);
      }
    }
  }

  static void rows(void* context, int64_t begin, int64_t end, char* memory) {
    const auto& job = *static_cast<const GatBackwardJob*>(context);
    const int64_t* rowptr = job.p.csc.rowptr;
    GatScratch<A> t(memory, job.heads, job.width);
    for (int64_t j = begin; j < end;) {
      int64_t stop = j;
      while (stop < end && stop - j < kBlock && rowptr[stop + 1] - rowptr[j] <= kBlock) ++stop;
      if (stop > j) {
        job.block(j, stop, t);
        j = stop;
        continue;
      }
      job.run(j, rowptr[j], rowptr[j + 1], t.head_b, t.row, t.row_pos, t);
      job.finish_row(j, t.head_b, t.row, t.row_pos, t.head_a);
      ++j;
    }
  }
  static void segment(void* context, int64_t j, int64_t begin, int64_t end, char* partial,
                      char* memory) {
    const auto& job = *static_cast<const GatBackwardJob*>(context);
    GatScratch<A> t(memory, job.heads, job.width);
    A* sum = reinterpret_cast<A*>(partial);
    job.run(j, begin, end, sum, sum + job.heads, sum + job.heads + job.width, t);
  }
  static void merge(void* context, int64_t j, const char* partials, int64_t count, char* memory) {
    const auto& job = *static_cast<const GatBackwardJob*>(context);
    GatScratch<A> t(memory, job.heads, job.width);
    const int64_t size = job.heads + 2 * job.width;
    A* total = reinterpret_cast<A*>(const_cast<char*>(partials));
    for (int64_t k = 1; k < count; ++k) {
      for (int64_t f = 0; f < size; ++f) total[f] += total[k * size + f];
    }
    job.finish_row(j, total, total + job.heads, total + job.heads + job.width, t.head_a);
  }
  static void destinations(void* context, int64_t begin, int64_t end, char* memory) {
    const auto& job = *static_cast<const GatBackwardJob*>(context);
    GatScratch<A> t(memory, job.heads, job.width);
    for (int64_t i = begin; i < end; ++i) job.prologue(i, t.head_a, t.head_b);
  }
};

template <class T, class A>
static Status gat_backward(const GatBackward& p) {
  const int64_t width = p.shape.heads * p.shape.channels;
  char* memory = allocate(HeadMap<A>::bytes(width));
  if (memory == nullptr) return Status::kOutOfMemory;
  using Job = GatBackwardJob<T, A>;
  Job job(p, memory);
  const size_t scratch = GatScratch<A>::bytes(p.shape.heads, width);
  Status status = run_range(p.csr.rows, p.shape.threads, &job, Job::destinations, scratch);
  if (status == Status::kOk) {
    status = run_rows(
        p.csc.rowptr, p.csc.rows, p.shape.threads,
        {&job, Job::rows, Job::segment, Job::merge, scratch, job.partial_bytes()});
  }
  release(memory);
  return status;
}

}  // namespace GK_ISA
}  // namespace gatkernels
