// The forward of both attentions: one pass over CSR. What differs is the scorer, which fills
// score and weight (the logits) of a row's edges and raises the row's maximum.
#pragma once
#include <cmath>

#include "heads.h"

namespace gatkernels {
namespace GK_ISA {

// The edges of a forward, and how they score.
template <class T, class A, class Scorer>
struct Scored {
  const Edges& csr;
  Heads<A> of;
  HeadMap<A> map;
  Gather<T> x;
  Scorer scorer;
  int heads;
  int64_t width;

  template <class Params>
  Scored(const Params& p, const Matrix& x_)
      : csr(p.csr),
        of(p.shape, p.scores.dropout),
        map(p.shape),
        x(x_, p.csr),
        scorer(p, map, x),
        heads(int(p.shape.heads)),
        width(map.width) {}

  Block block_of(int64_t edge, int n) const { return block_from(csr, edge, x.col_end, n); }
};

// Where results go; out_pos and stats may be null.
struct ForwardResults {
  void* out;
  void* out_pos;
  void* stats;
};

template <class T, class A, class Scorer>
struct ForwardJob : Scored<T, A, Scorer> {
  using V = Vec<A>;
  using Base = Scored<T, A, Scorer>;
  using Base::block_of, Base::csr, Base::heads, Base::map, Base::of, Base::scorer, Base::width,
      Base::x;
  ForwardResults to;

  template <class Params>
  ForwardJob(const Params& p, const ForwardResults& to_) : Base(p, p.x), to(to_) {}

  // Partial result of a chunk: maximum, sum, positive sum [3, slots], then out and out_pos.
  int64_t partial_size() const { return 3 * of.stride + 2 * width; }
  A* out_pos_of(int64_t row) const {
    return to.out_pos ? static_cast<A*>(to.out_pos) + row * width : nullptr;
  }
  A* stats_of(int64_t row) const {
    return to.stats ? static_cast<A*>(to.stats) + row * 3 * heads : nullptr;
  }

  // Edges [begin, end) of one row, block by block: a running softmax whose sums and rows are
  // rescaled when a block raises the maximum.
  void run(int64_t row, int64_t begin, int64_t end, A* top, A* sum, A* sum_pos, A* out, A* out_pos,
           const Scratch<A>& t) const {
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
      weights(block, top, sum, sum_pos, carry, t);
      accumulate(map, x, block.col, n, t.weight, t.weight_pos, of.stride, carry, out, out_pos);
    }
  }
  // Whether sums over positive edges are wanted; a row without channels has a share of them, too.
  bool pair() const { return Scorer::kSigned && to.stats != nullptr; }
  // weight, and weight_pos of positive edges, before they are divided by their sum
  void weights(const Block& block, const A* top, A* sum, A* sum_pos, bool carry,
               const Scratch<A>& t) const {
    of.loops.exponentials(of, block.n, t, top, sum, sum_pos, carry, pair());
    if (of.drop) of.loops.weigh(of, block, t, nullptr, pair());
  }
  void scale_head(A factor, int h, A* row) const {
    for (int64_t f = int64_t(h) * map.channels; f < int64_t(h + 1) * map.channels; ++f) {
      row[f] *= factor;
    }
  }
  // stats of a row from its maximum, sum and positive sum; sum <- 1 / sum
  void finish_stats(int64_t row, const Scratch<A>& t) const {
    for (int h = 0; h < heads; ++h) t.sum[h] = A(1) / t.sum[h];
    A* stats = stats_of(row);
    for (int h = 0; stats && h < heads; ++h) {
      stats[h] = t.top[h];
      stats[heads + h] = t.sum[h];
      stats[2 * heads + h] = t.sum_pos[h] * t.sum[h];
    }
  }
  void store_out(int64_t row, const A* values) const {
    store_row<A>(values, width, static_cast<T*>(to.out) + row * width);
  }
  // out = row / sum
  void finish_row(int64_t row, const Scratch<A>& t) const {
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
    prefetch_row(x, 0, width, col);
    for (int h = 0; h < heads; ++h) t.sum_pos[h] = pair() && t.score[h] > A(0) ? A(1) : A(0);
    if (A* stats = stats_of(row)) {
      for (int h = 0; h < heads; ++h) {
        stats[h] = t.top[h];
        stats[heads + h] = A(1);
        stats[2 * heads + h] = t.sum_pos[h];
      }
    }
    const T* from = x.data + int64_t(*col) * x.stride;
    if (width > 0) {
      std::memcpy(static_cast<T*>(to.out) + row * width, from, size_t(width) * sizeof(T));
    }
    if (to.out_pos == nullptr) return;
    A* out_pos = out_pos_of(row);
    for (int64_t f = 0; f < width; f += V::kWidth) {
      const int lanes = width - f < V::kWidth ? int(width - f) : V::kWidth;
      (expanded(map, f, t.sum_pos) * V::load(from + f, lanes)).store(out_pos + f, lanes);
    }
  }

  // A row of one block.
  void short_row(int64_t row, int64_t edge, int n, const Scratch<A>& t) const {
    const Block block = block_of(edge, n);
    if (n == 0) {
      if (to.stats) std::memset(stats_of(row), 0, size_t(3 * heads) * sizeof(A));
    } else {
      scorer.score(of, row, block, t, t.top, false);
      if (n == 1 && !of.drop && finite(t.top)) return copy_row(row, block.col, t);
      weights(block, t.top, t.sum, t.sum_pos, false, t);
      finish_stats(row, t);
    }
    A* out = t.row;
    if constexpr (std::is_same_v<T, A>) out = static_cast<A*>(to.out) + row * width;
    accumulate(map, x, block.col, n, t.weight, t.weight_pos, of.stride, false, out, out_pos_of(row),
               n == 0 ? nullptr : t.sum);
    if constexpr (!std::is_same_v<T, A>) store_out(row, out);
  }

  void rows(int64_t, int64_t begin, int64_t end, const Scratch<A>& t) const {
    const int64_t* rowptr = csr.rowptr;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = rowptr[row + 1] - rowptr[row];
      if (n <= scorer.block) {
        short_row(row, rowptr[row], int(n), t);
        continue;
      }
      A* row_pos = to.out_pos ? t.row_pos : nullptr;
      run(row, rowptr[row], rowptr[row + 1], t.top, t.sum, t.sum_pos, t.row, row_pos, t);
      finish_row(row, t);
    }
  }
  void chunk(int64_t row, int64_t begin, int64_t end, A* partial, const Scratch<A>& t) const {
    A* out = partial + 3 * of.stride;
    run(row, begin, end, partial, partial + of.stride, partial + 2 * of.stride, out,
        to.out_pos ? out + width : nullptr, t);
  }
  void merge(int64_t row, int64_t, const A* partials, int64_t count, const Scratch<A>& t) const {
    const auto part = [&](int64_t k) { return partials + k * partial_size(); };
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
      const A* out = from + 3 * of.stride;
      for (int h = 0; h < heads; ++h) {
        const A factor = std::exp(from[h] - t.top[h]);
        t.sum[h] += factor * from[of.stride + h];
        t.sum_pos[h] += factor * from[2 * of.stride + h];
        for (int64_t f = int64_t(h) * map.channels; f < int64_t(h + 1) * map.channels; ++f) {
          t.row[f] += factor * out[f];
          if (to.out_pos) t.row_pos[f] += factor * out[width + f];
        }
      }
    }
    finish_row(row, t);
  }
};

// The attention weights of a forward, from its statistics.
template <class A, class Scored>
struct AlphaJob {
  const Scored& of_edges;
  const A* stats_of_rows;  // [Nd, 3, H]
  A* alpha;                // [E, H]

  int64_t partial_size() const { return 0; }
  void chunk(int64_t row, int64_t begin, int64_t end, A*, const Scratch<A>& t) const {
    const Heads<A>& of = of_edges.of;
    const auto& scorer = of_edges.scorer;
    const int heads = of_edges.heads;
    const A* stats = stats_of_rows + row * 3 * heads;
    for (int64_t edge = begin; edge < end; edge += scorer.block) {
      const int n = int(end - edge < scorer.block ? end - edge : scorer.block);
      const Block block = of_edges.block_of(edge, n);
      scorer.score(of, row, block, t, t.top, false);
      of.loops.exponentials(of, n, t, stats, t.sum, t.sum_pos, false, false);
      of.loops.weigh(of, block, t, stats + heads, false);
      for (int e = 0; e < n; ++e) {
        std::memcpy(alpha + int64_t(block.eid[e]) * heads, t.weight + e * of.stride,
                    size_t(heads) * sizeof(A));
      }
    }
  }
  void rows(int64_t, int64_t begin, int64_t end, const Scratch<A>& t) const {
    const int64_t* rowptr = of_edges.csr.rowptr;
    for (int64_t row = begin; row < end; ++row) {
      chunk(row, rowptr[row], rowptr[row + 1], nullptr, t);
    }
  }
  void merge(int64_t, int64_t, const A*, int64_t, const Scratch<A>&) const {}
};

template <class T, class A, class Scorer, class Params>
static Status run_forward(const Params& p, const ForwardResults& to) {
  const ForwardJob<T, A, Scorer> job(p, to);
  if (job.map.head == nullptr) return Status::kOutOfMemory;
  return run_edges<A>(p.csr, p.shape, job.width, job);
}
template <class T, class A, class Scorer, class Params>
static Status run_alpha(const Params& p, const Matrix& x) {
  const Scored<T, A, Scorer> scored(p, x);
  if (scored.map.head == nullptr) return Status::kOutOfMemory;
  const AlphaJob<A, Scored<T, A, Scorer>> job{scored, static_cast<const A*>(p.stats),
                                              static_cast<A*>(p.alpha)};
  return run_edges<A>(p.csr, p.shape, scored.width, job);
}

}  // namespace GK_ISA
}  // namespace gatkernels
