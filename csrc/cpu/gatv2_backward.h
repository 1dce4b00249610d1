// GATv2 backward on CPU: a prologue over destinations, a pass over CSR for grad_dst and grad_att,
// a pass over CSC for grad_src. Per edge, with dl = alpha (m <dO, x_src> - delta):
//   grad_dst += dl att leaky'(u),  grad_att += dl leaky(u),
//   grad_src += dl att leaky'(u) + alpha m dO,              u = x_src + x_dst + edge.
#pragma once
#include "gat_backward.h"
#include "gatv2.h"

namespace gatkernels {
namespace GK_ISA {

template <class T, class A, int kHeads>
struct Gatv2BackwardJob {
  using V = Vec<A>;
  const Gatv2Backward& p;
  HeadVectors<A, kHeads> lanes_of;
  HeadMap<A> map;
  Gather<T> x;       // rows of x_src, by the columns of CSR
  Gather<T> packed;  // rows of grad and x_dst, by the columns of CSC
  const A* fields;   // behind each packed row: maximum, 1 / sum, delta [3, H]
  int64_t fields_stride;
  Gatv2Scorer<T, A, kHeads> scorer;
  int heads;
  int64_t width;
  A* att_parts;  // [tasks, then long rows; H * C]
  int64_t tasks;

  Gatv2BackwardJob(const Gatv2Backward& params, char* memory, A* att_parts_, int64_t tasks_)
      : p(params),
        lanes_of(params.shape, params.scores.dropout),
        map(params.shape.heads, params.shape.channels, memory),
        x{static_cast<const T*>(params.x.data), params.x.stride,
          params.csr.col + params.csr.rowptr[params.csr.rows]},
        packed{static_cast<const T*>(params.packed.data), params.packed.stride,
               params.csc.col + params.csc.rowptr[params.csc.rows]},
        fields(fields_behind<A>(packed, 2 * map.width)),
        fields_stride(params.packed.stride * int64_t(sizeof(T)) / int64_t(sizeof(A))),
        scorer(params, map, x),
        heads(int(params.shape.heads)),
        width(map.width),
        att_parts(att_parts_),
        tasks(tasks_) {}

  // Two rows of sums [2, H * C]: by destination of leaky' and leaky terms, by source of leaky'
  // terms and of alpha m dO.
  int64_t partial_size() const { return 2 * width; }
  const T* x_of(int64_t j) const { return x.data + j * x.stride; }
  const T* grad_of(int64_t i) const { return packed.data + i * packed.stride; }
  const T* dst_of(int64_t i) const { return grad_of(i) + width; }

  void prologue(int64_t i, A* delta) const {
    const T* grad = static_cast<const T*>(p.grad.data) + i * p.grad.stride;
    dot_heads(map, static_cast<const T*>(p.out) + i * width, grad, delta);
    if (p.grad_alpha) {
      for (int64_t edge = p.csr.rowptr[i]; edge < p.csr.rowptr[i + 1]; ++edge) {
        const int64_t at = int64_t(p.csr.eid[edge]) * heads;
        for (int h = 0; h < heads; ++h) {
          delta[h] +=
              static_cast<const A*>(p.alpha)[at + h] * static_cast<const A*>(p.grad_alpha)[at + h];
        }
      }
    }
    T* row = const_cast<T*>(grad_of(i));
    std::memcpy(row, grad, size_t(width) * sizeof(T));
    std::memcpy(row + width, scorer.x_dst + i * scorer.dst_stride, size_t(width) * sizeof(T));
    A* field = const_cast<A*>(fields) + i * fields_stride;
    std::memcpy(field, static_cast<const A*>(p.stats) + i * 3 * heads,
                size_t(2 * heads) * sizeof(A));
    std::memcpy(field + 2 * heads, delta, size_t(heads) * sizeof(A));
  }

  // weight = alpha m and score = dl for n edges, whose sources and destinations are `src` and
  // `dst` (one of them the same for all).
  template <class Source, class Destination>
  void terms(const int32_t* eid, int n, Source src, Destination dst, Scratch<A>& t) const {
    const int stride = lanes_of.stride;
    for (int e = 0; e < n; ++e) {
      const int64_t i = dst(e), j = src(e);
      scorer.logits({x_of(j), dst_of(i), scorer.edge_row(eid[e])}, t.weight + e * stride);
      dot_heads(map, grad_of(i), x_of(j), t.score + e * stride);
      const A* field = fields + i * fields_stride;
      for (int h = 0; h < heads; ++h) t.weight[e * stride + h] -= field[h];
    }
    lanes_of.each_slot([&](int h, int) {
      lanes_of.each_vector(
          h, n, [&](int at, int, int) { V::exp(V::load(t.weight + at)).store(t.weight + at); });
    });
    for (int e = 0; e < n; ++e) {
      const A* field = fields + dst(e) * fields_stride;
      for (int h = 0; h < heads; ++h) {
        const A alpha = t.weight[e * stride + h] * field[heads + h];
        t.weight[e * stride + h] = alpha;
        t.weight_pos[e * stride + h] = alpha * field[2 * heads + h];
      }
    }
    lanes_of.weigh(t, eid, n, nullptr, false);
    for (int e = 0; e < n; ++e) {
      const A* grad_alpha =
          p.grad_alpha ? static_cast<const A*>(p.grad_alpha) + int64_t(eid[e]) * heads : nullptr;
      for (int h = 0; h < heads; ++h) {
        const int k = e * stride + h;
        const A outer = grad_alpha ? t.score[k] + grad_alpha[h] : t.score[k];
        t.score[k] = t.weight[k] * outer - t.weight_pos[k];
      }
    }
  }

  // One vector of features at a time over n edges: slopes (+)= sum dl leaky'(u), and `other` (+)=
  // sum dl leaky(u) (by destination) or sum alpha m dO (by source).
  template <bool kBySource, class Source, class Destination>
  void accumulate_terms(const int32_t* eid, int n, Source src, Destination dst, const Scratch<A>& t,
                        bool carry, A* slopes, A* other) const {
    constexpr int kTile = V::kTile / 2;
    for (int64_t begin = 0; begin < width; begin += kTile * V::kWidth) {
      V first[kTile], second[kTile];
      int lanes[kTile];
      typename V::Index index[kTile];
      int count = 0;
      for (int64_t f = begin; f < width && count < kTile; f += V::kWidth, ++count) {
        lanes[count] = width - f < V::kWidth ? int(width - f) : V::kWidth;
        first[count] = carry ? V::load(slopes + f, lanes[count]) : V::set(A(0));
        second[count] = carry ? V::load(other + f, lanes[count]) : V::set(A(0));
        index[count] = V::index(map.offset + f);
      }
      for (int e = 0; e < n; ++e) {
        const int64_t i = dst(e);
        const EdgeSum<T, A> sum{x_of(src(e)), dst_of(i), scorer.edge_row(eid[e])};
        const A* dl = t.score + e * lanes_of.stride;
        const A* w = t.weight + e * lanes_of.stride;
        for (int k = 0; k < count; ++k) {
          const int64_t f = begin + k * V::kWidth;
          const int head = map.first[f / V::kWidth];
          const V u = sum(f, lanes[k]);
          const V d = V::expand(dl + head, index[k]);
          first[k] = V::fma(d, scorer.leaky_slope(u), first[k]);
          if constexpr (kBySource) {
            const V grad = EdgeSum<T, A>::load(grad_of(i) + f, lanes[k]);
            second[k] = V::fma(V::expand(w + head, index[k]), grad, second[k]);
          } else {
            second[k] = V::fma(d, scorer.leaky(u), second[k]);
            if (p.grad_edge) {
              T* to = static_cast<T*>(p.grad_edge) + int64_t(eid[e]) * width + f;
              (d * scorer.leaky_slope(u) * V::load(scorer.att + f, lanes[k])).store(to, lanes[k]);
            }
          }
        }
      }
      for (int k = 0; k < count; ++k) {
        const int64_t f = begin + k * V::kWidth;
        first[k].store(slopes + f, lanes[k]);
        second[k].store(other + f, lanes[k]);
      }
    }
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

  void run_dst(int64_t i, int64_t begin, int64_t end, A* slopes, A* other, Scratch<A>& t) const {
    for (int64_t edge = begin; edge < end; edge += scorer.block) {
      const int n = int(end - edge < scorer.block ? end - edge : scorer.block);
      const int32_t* col = p.csr.col + edge;
      const int32_t* eid = p.csr.eid + edge;
      const auto src = [&](int e) { return int64_t(col[e]); };
      const auto dst = [&](int) { return i; };
      for (int e = 0; e < n; ++e) prefetch_row(x, width, col + e);
      terms(eid, n, src, dst, t);
      accumulate_terms<false>(eid, n, src, dst, t, edge != begin, slopes, other);
    }
  }
  void run_src(int64_t j, int64_t begin, int64_t end, A* slopes, A* other, Scratch<A>& t) const {
    for (int64_t edge = begin; edge < end; edge += scorer.block) {
      const int n = int(end - edge < scorer.block ? end - edge : scorer.block);
      const int32_t* row = p.csc.col + edge;
      const int32_t* eid = p.csc.eid + edge;
      const auto src = [&](int) { return j; };
      const auto dst = [&](int e) { return int64_t(row[e]); };
      for (int e = 0; e < n; ++e) prefetch_row(packed, packed.stride, row + e);
      terms(eid, n, src, dst, t);
      accumulate_terms<true>(eid, n, src, dst, t, edge != begin, slopes, other);
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
      job.run_dst(i, rowptr[i], rowptr[i + 1], t.row, t.row_pos, t);
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
      job.run_src(j, rowptr[j], rowptr[j + 1], t.row, t.row_pos, t);
      job.store_grad(job.grad_src_of(j), t.row, t.row_pos);
    }
  }
  static void dst_segment(void* context, int64_t i, int64_t begin, int64_t end, char* partial,
                          char* memory) {
    const auto& job = self(context);
    Scratch<A> t(memory, job.heads, job.width);
    A* slopes = reinterpret_cast<A*>(partial);
    job.run_dst(i, begin, end, slopes, slopes + job.width, t);
  }
  static void src_segment(void* context, int64_t j, int64_t begin, int64_t end, char* partial,
                          char* memory) {
    const auto& job = self(context);
    Scratch<A> t(memory, job.heads, job.width);
    A* slopes = reinterpret_cast<A*>(partial);
    job.run_src(j, begin, end, slopes, slopes + job.width, t);
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

template <class T, class A, int kHeads>
static Status gatv2_backward_slot(const Gatv2Backward& p) {
  const int64_t width = p.shape.heads * p.shape.channels;
  const int64_t tasks = task_count(p.csr.rowptr, p.csr.rows);
  const int64_t parts = tasks + long_row_limit(p.csr.rowptr, p.csr.rows);
  char* memory = allocate(HeadMap<A>::bytes(width));
  A* att_parts = reinterpret_cast<A*>(allocate(size_t(parts * width) * sizeof(A)));
  Status status = Status::kOutOfMemory;
  if (memory != nullptr && att_parts != nullptr) {
    std::memset(att_parts, 0, size_t(parts * width) * sizeof(A));
    Gatv2BackwardJob<T, A, kHeads> job(p, memory, att_parts, tasks);
    status = job.launch();
    A* grad_att = static_cast<A*>(p.grad_att);
    std::memset(grad_att, 0, size_t(width) * sizeof(A));
    for (int64_t k = 0; k < parts; ++k) {
      for (int64_t f = 0; f < width; ++f) grad_att[f] += att_parts[k * width + f];
    }
  }
  release(memory);
  release(reinterpret_cast<char*>(att_parts));
  return status;
}

template <class T, class A>
static Status gatv2_backward(const Gatv2Backward& p) {
#define GK_RUN(kHeads) return gatv2_backward_slot<T, A, kHeads>(p)
  GK_FOR_SLOT(A, p.shape.heads, GK_RUN)
#undef GK_RUN
}

}  // namespace GK_ISA
}  // namespace gatkernels
