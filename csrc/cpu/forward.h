// The forward of both attentions: one pass over CSR. What differs is the scorer, which fills
// score and weight (the logits) of a row's edges and raises the row's maximum.
#pragma once
#include <cmath>

#include "heads.h"

namespace gatkernels {
namespace GK_ISA {

template <class T, class A, class Scorer, class Params>
struct ForwardJob {
  using V = Vec<A>;
  const Params& p;
  Heads<A> of;
  HeadMap<A> map;
  Gather<T> x;
  Scorer scorer;
  int heads;
  int64_t width;

  ForwardJob(const Params& params, char* memory)
      : p(params),
        of(params.shape, params.scores.dropout),
        map(params.shape.heads, params.shape.channels, memory),
        x{static_cast<const T*>(params.x.data), params.x.stride,
          params.csr.col + params.csr.rowptr[params.csr.rows]},
        scorer(params, map, x),
        heads(int(params.shape.heads)),
        width(map.width) {}

  // Partial result of a segment: maximum, sum, positive sum [3, slots], then out and out_pos.
  int64_t partial_size() const { return 3 * of.stride + 2 * width; }
  Block block_of(int64_t edge, int n) const {
    return {p.csr.col + edge, p.csr.eid + edge, x.col_end, n};
  }
  A* out_pos_of(int64_t row) const {
    return p.out_pos ? static_cast<A*>(p.out_pos) + row * width : nullptr;
  }

  // Edges [begin, end) of one row, block by block: a running softmax whose sums and rows are
  // rescaled when a block raises the maximum.
  void run(int64_t row, int64_t begin, int64_t end, A* top, A* sum, A* sum_pos, A* out, A* out_pos,
           Scratch<A>& t) const {
    for (int64_t edge = begin; edge < end; edge += scorer.block) {
      const int n = int(end - edge < scorer.block ? end - edge : scorer.block);
      const bool carry = edge != begin;
      if (carry) std::memcpy(t.head, top, size_t(heads) * sizeof(A));
      const Block block = block_of(edge, n);
      scorer.score(of, row, block, t, top, carry);
      if (carry && std::memcmp(t.head, top, size_t(heads) * sizeof(A)) != 0) {
        for (int h = 0; h < heads; ++h) {
          const A factor = t.head[h] == top[h] ? A(1) : std::exp(t.head[h] - top[h]);
          sum[h] *= factor;
          sum_pos[h] *= factor;
          scale_head(factor, h, out);
          if (out_pos) scale_head(factor, h, out_pos);
        }
      }
      of.loops.exponentials(of, n, t, top, sum, sum_pos, carry);
      of.loops.weigh(of, block, t, nullptr, out_pos != nullptr);
      accumulate(map, x, block.col, n, t.weight, t.weight_pos, of.stride, carry, out, out_pos);
    }
  }
  void scale_head(A factor, int h, A* row) const {
    for (int64_t f = int64_t(h) * map.channels; f < int64_t(h + 1) * map.channels; ++f) {
      row[f] *= factor;
    }
  }
  // stats of a row from its maximum, sum and positive sum; sum <- 1 / sum
  void finish_stats(int64_t row, Scratch<A>& t) const {
    A* stats = static_cast<A*>(p.stats) + row * 3 * heads;
    for (int h = 0; h < heads; ++h) {
      t.sum[h] = A(1) / t.sum[h];
      if (p.stats == nullptr) continue;
      stats[h] = t.top[h];
      stats[heads + h] = t.sum[h];
      stats[2 * heads + h] = t.sum_pos[h] * t.sum[h];
    }
  }
  void store_out(int64_t row, const A* values) const {
    T* out = static_cast<T*>(p.out) + row * width;
    for (int64_t f = 0; f < width; f += V::kWidth) {
      const int lanes = width - f < V::kWidth ? int(width - f) : V::kWidth;
      V::load(values + f, lanes).store(out + f, lanes);
    }
  }
  // out = row / sum
  void finish_row(int64_t row, Scratch<A>& t) const {
    finish_stats(row, t);
    A* out_pos = out_pos_of(row);
    for (int h = 0; h < heads; ++h) {
      for (int64_t c = 0; c < map.channels; ++c) {
        const int64_t f = int64_t(h) * map.channels + c;
        t.row[f] *= t.sum[h];
        if (out_pos) out_pos[f] = t.row_pos[f] * t.sum[h];
      }
    }
    store_out(row, t.row);
  }

  // Whether a row's maximum is finite for every head.
  bool finite(const A* top) const {
    A difference = A(0);  // NaN where one is not
    for (int h = 0; h < heads; ++h) difference += top[h] - top[h];
    return difference == A(0);
  }
  // A row of one edge from j whose score is finite: alpha = 1.
  void copy_row(int64_t row, const int32_t* col, const Scratch<A>& t) const {
    prefetch_row(x, width, col);
    for (int h = 0; h < heads; ++h) t.sum_pos[h] = t.score[h] > A(0) ? A(1) : A(0);
    if (p.stats) {
      A* stats = static_cast<A*>(p.stats) + row * 3 * heads;
      for (int h = 0; h < heads; ++h) {
        stats[h] = t.top[h];
        stats[heads + h] = A(1);
        stats[2 * heads + h] = t.sum_pos[h];
      }
    }
    const T* from = x.data + int64_t(*col) * x.stride;
    std::memcpy(static_cast<T*>(p.out) + row * width, from, size_t(width) * sizeof(T));
    if (p.out_pos == nullptr) return;
    A* out_pos = out_pos_of(row);
    for (int64_t f = 0, v = 0; f < width; f += V::kWidth, ++v) {
      const int lanes = width - f < V::kWidth ? int(width - f) : V::kWidth;
      const V kept = V::expand(t.sum_pos + map.first[v], V::index(map.offset + f));
      (kept * V::load(from + f, lanes)).store(out_pos + f, lanes);
    }
  }

  // A row of one block.
  void short_row(int64_t row, int64_t edge, int n, Scratch<A>& t) const {
    const Block block = block_of(edge, n);
    if (n == 0) {
      if (p.stats) {
        std::memset(static_cast<A*>(p.stats) + row * 3 * heads, 0, size_t(3 * heads) * sizeof(A));
      }
    } else {
      scorer.score(of, row, block, t, t.top, false);
      if (n == 1 && !of.drop && finite(t.top)) return copy_row(row, block.col, t);
      of.loops.exponentials(of, n, t, t.top, t.sum, t.sum_pos, false);
      finish_stats(row, t);
      of.loops.weigh(of, block, t, t.sum, p.out_pos != nullptr);
    }
    A* out = t.row;
    if constexpr (std::is_same_v<T, A>) out = static_cast<A*>(p.out) + row * width;
    accumulate(map, x, block.col, n, t.weight, t.weight_pos, of.stride, false, out,
               out_pos_of(row));
    if constexpr (!std::is_same_v<T, A>) store_out(row, out);
  }

  static void rows(void* context, int64_t, int64_t begin, int64_t end, char* memory) {
    const auto& job = *static_cast<const ForwardJob*>(context);
    const int64_t* rowptr = job.p.csr.rowptr;
    Scratch<A> t(memory, job.heads, job.width);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = rowptr[row + 1] - rowptr[row];
      if (n <= job.scorer.block) {
        job.short_row(row, rowptr[row], int(n), t);
        continue;
      }
      A* row_pos = job.p.out_pos ? t.row_pos : nullptr;
      job.run(row, rowptr[row], rowptr[row + 1], t.top, t.sum, t.sum_pos, t.row, row_pos, t);
      job.finish_row(row, t);
    }
  }
  static void segment(void* context, int64_t row, int64_t begin, int64_t end, char* partial,
                      char* memory) {
    const auto& job = *static_cast<const ForwardJob*>(context);
    Scratch<A> t(memory, job.heads, job.width);
    const int stride = job.of.stride;
    A* top = reinterpret_cast<A*>(partial);
    A* out = top + 3 * stride;
    job.run(row, begin, end, top, top + stride, top + 2 * stride, out,
            job.p.out_pos ? out + job.width : nullptr, t);
  }
  static void merge(void* context, int64_t row, int64_t, const char* partials, int64_t count,
                    char* memory) {
    const auto& job = *static_cast<const ForwardJob*>(context);
    const int heads = job.heads, stride = job.of.stride;
    const int64_t width = job.width;
    Scratch<A> t(memory, heads, width);
    const auto part = [&](int64_t k) {
      return reinterpret_cast<const A*>(partials) + k * job.partial_size();
    };
    std::memcpy(t.top, part(0), size_t(heads) * sizeof(A));
    for (int64_t k = 1; k < count; ++k) {
      for (int h = 0; h < heads; ++h) {
        if (!(part(k)[h] <= t.top[h])) t.top[h] = part(k)[h];
      }
    }
    for (int h = 0; h < heads; ++h) t.sum[h] = t.sum_pos[h] = A(0);
    std::memset(t.row, 0, size_t(width) * sizeof(A));
    std::memset(t.row_pos, 0, size_t(width) * sizeof(A));
    for (int64_t k = 0; k < count; ++k) {
      const A* from = part(k);
      const A* out = from + 3 * stride;
      for (int h = 0; h < heads; ++h) {
        const A factor = std::exp(from[h] - t.top[h]);
        t.sum[h] += factor * from[stride + h];
        t.sum_pos[h] += factor * from[2 * stride + h];
        const int64_t end = int64_t(h + 1) * job.map.channels;
        for (int64_t f = int64_t(h) * job.map.channels; f < end; ++f) {
          t.row[f] += factor * out[f];
          if (job.p.out_pos) t.row_pos[f] += factor * out[width + f];
        }
      }
    }
    job.finish_row(row, t);
  }

  Status launch() {
    return run_rows(p.csr.rowptr, p.csr.rows, p.shape.threads,
                    {this, rows, segment, merge, Scratch<A>::bytes(heads, width),
                     size_t(partial_size()) * sizeof(A)});
  }
};

// The attention weights of a forward, from its statistics.
template <class A, class Forward>
struct AlphaJob {
  const Forward& forward;
  const AlphaOut& to;

  void run(int64_t row, int64_t begin, int64_t end, Scratch<A>& t) const {
    const int heads = forward.heads;
    const A* stats = static_cast<const A*>(to.stats) + row * 3 * heads;
    for (int64_t edge = begin; edge < end; edge += forward.scorer.block) {
      const int n = int(end - edge < forward.scorer.block ? end - edge : forward.scorer.block);
      const Heads<A>& of = forward.of;
      const Block block = forward.block_of(edge, n);
      forward.scorer.score(of, row, block, t, t.top, false);
      of.loops.exponentials(of, n, t, stats, t.sum, t.sum_pos, false);
      of.loops.weigh(of, block, t, stats + heads, false);
      for (int e = 0; e < n; ++e) {
        std::memcpy(static_cast<A*>(to.alpha) + int64_t(block.eid[e]) * heads,
                    t.weight + e * of.stride, size_t(heads) * sizeof(A));
      }
    }
  }
  static void rows(void* context, int64_t, int64_t begin, int64_t end, char* memory) {
    const auto& job = *static_cast<const AlphaJob*>(context);
    Scratch<A> t(memory, job.forward.heads, job.forward.width);
    const int64_t* rowptr = job.forward.p.csr.rowptr;
    for (int64_t row = begin; row < end; ++row) job.run(row, rowptr[row], rowptr[row + 1], t);
  }
  static void segment(void* context, int64_t row, int64_t begin, int64_t end, char*, char* memory) {
    const auto& job = *static_cast<const AlphaJob*>(context);
    Scratch<A> t(memory, job.forward.heads, job.forward.width);
    job.run(row, begin, end, t);
  }
  static void merge(void*, int64_t, int64_t, const char*, int64_t, char*) {}

  Status launch() {
    return run_rows(
        forward.p.csr.rowptr, forward.p.csr.rows, forward.p.shape.threads,
        {this, rows, segment, merge, Scratch<A>::bytes(forward.heads, forward.width), 0});
  }
};

// Runs a forward, or with `to` the attention weights of one.
template <class A, class Job, class Params>
static Status run_forward(const Params& p, const AlphaOut* to) {
  char* memory = allocate(HeadMap<A>::bytes(p.shape.heads * p.shape.channels));
  if (memory == nullptr) return Status::kOutOfMemory;
  Job job(p, memory);
  Status status;
  if (to) {
    AlphaJob<A, Job> weights{job, *to};
    status = weights.launch();
  } else {
    status = job.launch();
  }
  release(memory);
  return status;
}

}  // namespace GK_ISA
}  // namespace gatkernels
