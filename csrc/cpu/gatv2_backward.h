// GATv2 backward on CPU: a prologue over destinations, a pass over CSR for grad_dst and grad_att,
// a pass over CSC for grad_src. Per edge, with dl = alpha (m <dO, x_src> - delta):
//   grad_dst += dl att leaky'(u),  grad_att += dl leaky(u),
//   grad_src += dl att leaky'(u) + alpha m dO,              u = x_src + x_dst + edge.
#pragma once
#include "gat_backward.h"
#include "gatv2.h"

namespace gatkernels {
namespace GK_ISA {

template <class T, class A>
struct Gatv2BackwardJob {
  using V = Vec<A>;
  const Gatv2Backward& p;
  Heads<A> of;
  HeadMap<A> map;
  Gather<T> x;            // x_src by the columns of CSR
  Gather<T> grad, x_dst;  // by the columns of CSC
  const A* fields;        // of each destination [3, H]: row maximum, 1 / sum, delta
  int64_t fields_stride;
  Gatv2Scorer<T, A> scorer;
  int heads;
  int64_t width;
  A* att_parts;  // [tasks, then long rows; H * C]
  int64_t tasks;

  Gatv2BackwardJob(const Gatv2Backward& params, char* memory, A* att_parts_, int64_t tasks_)
      : p(params),
        of(params.shape, params.scores.dropout),
        map(params.shape.heads, params.shape.channels, memory),
        x{static_cast<const T*>(params.x.data), params.x.stride,
          params.csr.col + params.csr.rowptr[params.csr.rows]},
        grad{static_cast<const T*>(params.grad.data), params.grad.stride,
             params.csc.col + params.csc.rowptr[params.csc.rows]},
        x_dst{static_cast<const T*>(params.scores.dst.data), params.scores.dst.stride,
              grad.col_end},
        fields(static_cast<const A*>(params.fields)),
        fields_stride(4 * params.shape.heads),
        scorer(params, map, x),
        heads(int(params.shape.heads)),
        width(map.width),
        att_parts(att_parts_),
        tasks(tasks_) {}

  // Two rows of sums [2, H * C]: by destination of leaky' and leaky terms, by source of leaky'
  // terms and of alpha m dO.
  int64_t partial_size() const { return 2 * width; }
  const T* x_of(int64_t j) const { return x.data + j * x.stride; }
  const T* grad_of(int64_t i) const { return grad.data + i * grad.stride; }
  const T* dst_of(int64_t i) const { return x_dst.data + i * x_dst.stride; }

  void prefetch_fields(const int32_t* at) const {
    const int32_t* ahead = at + kPrefetch < grad.col_end ? at + kPrefetch : at;
    const A* next = fields + *ahead * fields_stride;
    for (int64_t k = 0; k < 3 * heads; k += 64 / int64_t(sizeof(A))) __builtin_prefetch(next + k);
  }

  void prologue(int64_t i, A* delta) const {
    dot_heads(map, static_cast<const T*>(p.out) + i * width, grad_of(i), delta);
    if (p.grad_alpha) {
      for (int64_t edge = p.csr.rowptr[i]; edge < p.csr.rowptr[i + 1]; ++edge) {
        const int64_t at = int64_t(p.csr.eid[edge]) * heads;
        for (int h = 0; h < heads; ++h) {
          delta[h] +=
              static_cast<const A*>(p.alpha)[at + h] * static_cast<const A*>(p.grad_alpha)[at + h];
        }
      }
    }
    A* field = static_cast<A*>(p.fields) + i * fields_stride;
    std::memcpy(field, static_cast<const A*>(p.stats) + i * 3 * heads,
                size_t(2 * heads) * sizeof(A));
    std::memcpy(field + 2 * heads, delta, size_t(heads) * sizeof(A));
  }

  // weight = alpha m and score = dl for n edges between the row `own` and the rows `at`, the
  // sources' where kBySource, the destinations' else.
  template <bool kBySource>
  void terms(int64_t own, const int32_t* at, const int32_t* eid, int n, Scratch<A>& t) const {
    for (int e = 0; e < n; ++e) {
      if (kBySource) {
        prefetch_row(grad, width, at + e);
        prefetch_row(x_dst, width, at + e);
        prefetch_fields(at + e);
      } else {
        prefetch_row(x, width, at + e);
      }
      const int64_t j = kBySource ? own : at[e], i = kBySource ? at[e] : own;
      scorer.logits({x_of(j), dst_of(i), scorer.edge_row(eid[e])}, t.weight + e * of.stride);
      dot_heads(map, grad_of(i), x_of(j), t.score + e * of.stride);
    }
    const Block block{at, eid, grad.col_end, n};
    if (kBySource) {
      of.loops.alpha_of_edges(of, {fields, fields_stride}, block, t);
    } else {
      of.loops.alpha_of_row(of, fields + own * fields_stride, block, t);
    }
    of.loops.weigh(of, block, t, nullptr, false);
    of.loops.score_gradient(of, static_cast<const A*>(p.grad_alpha), block, t);
  }

  // Over n edges and kN vectors of features: slopes (+)= sum dl leaky'(u), and other (+)= sum
  // dl leaky(u) (by destination) or sum alpha m dO (by source).
  // kPlain: no vector spans two heads, and there are no edge features.
  template <bool kBySource, bool kPlain, int kN>
  void accumulate_tile(int64_t own, const int32_t* at, const int32_t* eid, int n, int64_t feature,
                       bool carry, A* slopes, A* other, const Scratch<A>& t) const {
    const T* own_row = (kBySource ? x_of(own) : dst_of(own)) + feature;
    const int64_t left = width - feature;
    const int tail = left < kN * V::kWidth ? int(left - (kN - 1) * V::kWidth) : V::kWidth;
    V first[kN], second[kN], fixed[kN];
    int head[kN];
    typename V::Index index[kN];
    unrolled<kN>([&](auto k) __attribute__((always_inline)) {
      constexpr int f = k * V::kWidth;
      const int lanes = k == kN - 1 ? tail : V::kWidth;
      first[k] = carry ? V::load(slopes + feature + f, lanes) : V::set(A(0));
      second[k] = carry ? V::load(other + feature + f, lanes) : V::set(A(0));
      fixed[k] = V::load(own_row + f, lanes);
      head[k] = map.first[feature / V::kWidth + k];
      if (!kPlain) index[k] = V::index(map.offset + feature + f);
    });
    const auto sum = [&](auto whole) __attribute__((always_inline)) {
      for (int e = 0; e < n; ++e) {
        const T* row = (kBySource ? dst_of(at[e]) : x_of(at[e])) + feature;
        const T* grad_row = grad_of(at[e]) + feature;
        const T* edge = kPlain ? nullptr : scorer.edge_row(eid[e]);
        const A* dl = t.score + e * of.stride;
        const A* w = t.weight + e * of.stride;
        unrolled<kN>([&](auto k) __attribute__((always_inline)) {
          constexpr int f = k * V::kWidth;
          const auto load = [&](const T* p) __attribute__((always_inline)) {
            return k < kN - 1 || whole() ? load_row<A>(p + f) : V::load(p + f, tail);
          };
          const auto of_head = [&](const A* values) __attribute__((always_inline)) {
            return kPlain ? V::set(values[head[k]]) : V::expand(values + head[k], index[k]);
          };
          V u = fixed[k] + load(row);
          if (!kPlain && edge) u = u + load(edge + feature);
          const V slope = of_head(dl) * scorer.leaky_slope(u);
          first[k] = first[k] + slope;
          if constexpr (kBySource) {
            second[k] = V::fma(of_head(w), load(grad_row), second[k]);
          } else {
            second[k] = V::fma(slope, u, second[k]);
            if (!kPlain && p.grad_edge) {
              const int lanes = k == kN - 1 ? tail : V::kWidth;
              T* to = static_cast<T*>(p.grad_edge) + int64_t(eid[e]) * width + feature + f;
              (slope * V::load(scorer.att + feature + f, lanes)).store(to, lanes);
            }
          }
        });
      }
    };
    if (kPlain && tail == V::kWidth) {
      sum(std::true_type());
    } else {
      sum(std::false_type());
    }
    unrolled<kN>([&](auto k) __attribute__((always_inline)) {
      const int lanes = k == kN - 1 ? tail : V::kWidth;
      first[k].store(slopes + feature + k * V::kWidth, lanes);
      second[k].store(other + feature + k * V::kWidth, lanes);
    });
  }

  template <bool kBySource, int kN, class... Rest>
  void accumulate_kinds(int64_t own, Rest... rest) const {
    if (map.uniform && scorer.edge_rows == nullptr) {
      accumulate_tile<kBySource, true, kN>(own, rest...);
    } else {
      accumulate_tile<kBySource, false, kN>(own, rest...);
    }
  }
  template <bool kBySource, class... Rest>
  void accumulate_terms(int64_t own, const int32_t* at, const int32_t* eid, int n,
                        Rest... rest) const {
    each_tile<V>(width, [&](auto vectors, int64_t f) {
      accumulate_kinds<kBySource, vectors.value>(own, at, eid, n, f, rest...);
    });
  }

  // result = att slopes (+ other)
  void store_grad(T* result, const A* slopes, const A* other) const {
    for (int64_t f = 0; f < width; f += V::kWidth) {
      const int lanes = width - f < V::kWidth ? int(width - f) : V::kWidth;
      V grad = V::load(scorer.att + f, lanes) * V::load(slopes + f, lanes);
      if (other) grad = grad + V::load(other + f, lanes);
      grad.store(result + f, lanes);
    }
  }
  T* grad_dst_of(int64_t i) const { return static_cast<T*>(p.grad_dst) + i * width; }
  T* grad_src_of(int64_t j) const { return static_cast<T*>(p.grad_src) + j * width; }
  void add_att(int64_t part, const A* terms) const {
    A* to = att_parts + part * width;
    for (int64_t f = 0; f < width; ++f) to[f] += terms[f];
  }

  // Edges [begin, end) of the row `own`, block by block.
  template <bool kBySource>
  void run(int64_t own, int64_t begin, int64_t end, A* slopes, A* other, Scratch<A>& t) const {
    const Edges& edges = kBySource ? p.csc : p.csr;
    for (int64_t edge = begin; edge < end; edge += scorer.block) {
      const int n = int(end - edge < scorer.block ? end - edge : scorer.block);
      const int32_t* at = edges.col + edge;
      const int32_t* eid = edges.eid + edge;
      terms<kBySource>(own, at, eid, n, t);
      accumulate_terms<kBySource>(own, at, eid, n, edge != begin, slopes, other, t);
    }
  }

  static const Gatv2BackwardJob& self(void* context) {
    return *static_cast<const Gatv2BackwardJob*>(context);
  }
  static void destinations(void* context, int64_t begin, int64_t end, char* memory) {
    Scratch<A> t(memory, self(context).heads, self(context).width);
    for (int64_t i = begin; i < end; ++i) self(context).prologue(i, t.sum);
  }
  static void dst_rows(void* context, int64_t task, int64_t begin, int64_t end, char* memory) {
    const auto& job = self(context);
    Scratch<A> t(memory, job.heads, job.width);
    const int64_t* rowptr = job.p.csr.rowptr;
    for (int64_t i = begin; i < end; ++i) {
      if (rowptr[i] == rowptr[i + 1]) {
        std::memset(job.grad_dst_of(i), 0, size_t(job.width) * sizeof(T));
        continue;
      }
      job.template run<false>(i, rowptr[i], rowptr[i + 1], t.row, t.row_pos, t);
      job.store_grad(job.grad_dst_of(i), t.row, nullptr);
      job.add_att(task, t.row_pos);
    }
  }
  static void src_rows(void* context, int64_t, int64_t begin, int64_t end, char* memory) {
    const auto& job = self(context);
    Scratch<A> t(memory, job.heads, job.width);
    const int64_t* rowptr = job.p.csc.rowptr;
    for (int64_t j = begin; j < end; ++j) {
      if (rowptr[j] == rowptr[j + 1]) {
        std::memset(job.grad_src_of(j), 0, size_t(job.width) * sizeof(T));
        continue;
      }
      job.template run<true>(j, rowptr[j], rowptr[j + 1], t.row, t.row_pos, t);
      job.store_grad(job.grad_src_of(j), t.row, t.row_pos);
    }
  }
  static void dst_segment(void* context, int64_t i, int64_t begin, int64_t end, char* partial,
                          char* memory) {
    const auto& job = self(context);
    Scratch<A> t(memory, job.heads, job.width);
    A* slopes = reinterpret_cast<A*>(partial);
    job.template run<false>(i, begin, end, slopes, slopes + job.width, t);
  }
  static void src_segment(void* context, int64_t j, int64_t begin, int64_t end, char* partial,
                          char* memory) {
    const auto& job = self(context);
    Scratch<A> t(memory, job.heads, job.width);
    A* slopes = reinterpret_cast<A*>(partial);
    job.template run<true>(j, begin, end, slopes, slopes + job.width, t);
  }
  A* add_partials(const char* partials, int64_t count) const {
    A* total = reinterpret_cast<A*>(const_cast<char*>(partials));
    for (int64_t k = 1; k < count; ++k) {
      for (int64_t f = 0; f < partial_size(); ++f) total[f] += total[k * partial_size() + f];
    }
    return total;
  }
  static void dst_merge(void* context, int64_t i, int64_t index, const char* partials,
                        int64_t count, char*) {
    const auto& job = self(context);
    const A* total = job.add_partials(partials, count);
    job.store_grad(job.grad_dst_of(i), total, nullptr);
    job.add_att(job.tasks + index, total + job.width);
  }
  static void src_merge(void* context, int64_t j, int64_t, const char* partials, int64_t count,
                        char*) {
    const auto& job = self(context);
    const A* total = job.add_partials(partials, count);
    job.store_grad(job.grad_src_of(j), total, total + job.width);
  }

  Status launch() {
    const int threads = p.shape.threads;
    const size_t scratch = Scratch<A>::bytes(heads, width);
    const size_t partial = size_t(partial_size()) * sizeof(A);
    Status status = run_range(p.csr.rows, threads, this, destinations, scratch);
    if (status == Status::kOk) {
      status = run_rows(p.csr.rowptr, p.csr.rows, threads,
                        {this, dst_rows, dst_segment, dst_merge, scratch, partial});
    }
    if (status == Status::kOk) {
      status = run_rows(p.csc.rowptr, p.csc.rows, threads,
                        {this, src_rows, src_segment, src_merge, scratch, partial});
    }
    return status;
  }
};

template <class T, class A>
static Status gatv2_backward(const Gatv2Backward& p) {
  const int64_t width = p.shape.heads * p.shape.channels;
  AttParts<A> parts(row_parts(p.csr), width);
  char* memory = allocate(HeadMap<A>::bytes(width));
  Status status = Status::kOutOfMemory;
  if (memory != nullptr && parts.data != nullptr) {
    const int64_t tasks = task_count(p.csr.rowptr, p.csr.rows);
    Gatv2BackwardJob<T, A> job(p, memory, parts.data, tasks);
    status = job.launch();
    parts.sum(static_cast<A*>(p.grad_att));
  }
  release(memory);
  return status;
}

}  // namespace GK_ISA
}  // namespace gatkernels
