// GAT on CPU: one pass over CSR forward, one pass over CSC backward. Included once per
// instruction set. Names and formulas as in gatkernels/reference.py and the README's mathematics.
#pragma once
#include <cmath>
#include <cstring>
#include <limits>

#include "rows.h"

namespace gatkernels {
namespace GK_ISA {

// Scratch of a thread, carved from one piece of memory; 64 bytes past each array may be read.
template <class A>
struct GatScratch {
  A *score, *weight, *weight_pos;  // [kBlock, H]
  uint32_t *words, *padded;        // Philox words [kBlock, H], [kBlock, H rounded up to 4]
  A *head_a, *head_b, *head_c;     // [H]
  A* sums;                         // [kBlock, H]
  A *row, *row_pos;                // [H * C]

  static size_t bytes(int64_t heads, int64_t width) {
    const size_t block = size_t(kBlock * heads) * sizeof(A) + 64;
    const size_t word = size_t(kBlock * (heads + 4)) * 4 + 64;
    return 4 * block + 2 * word + 3 * (size_t(heads) * sizeof(A) + 64) +
           2 * (size_t(width) * sizeof(A) + 64) + 16 * 64;
  }
  GatScratch(char* memory, int64_t heads, int64_t width) {
    auto take = [&](size_t size) {
      char* p = memory;
      memory += (size + 64 + 63) / 64 * 64;
      return p;
    };
    const size_t block = size_t(kBlock * heads) * sizeof(A);
    score = reinterpret_cast<A*>(take(block));
    weight = reinterpret_cast<A*>(take(block));
    weight_pos = reinterpret_cast<A*>(take(block));
    sums = reinterpret_cast<A*>(take(block));
    words = reinterpret_cast<uint32_t*>(take(size_t(kBlock * heads) * 4));
    padded = reinterpret_cast<uint32_t*>(take(size_t(kBlock * (heads + 3)) * 4));
    head_a = reinterpret_cast<A*>(take(size_t(heads) * sizeof(A)));
    head_b = reinterpret_cast<A*>(take(size_t(heads) * sizeof(A)));
    head_c = reinterpret_cast<A*>(take(size_t(heads) * sizeof(A)));
    row = reinterpret_cast<A*>(take(size_t(width) * sizeof(A)));
    row_pos = reinterpret_cast<A*>(take(size_t(width) * sizeof(A)));
  }
};

// Calls body(h, lanes) for each vector of heads.
template <class A, class Body>
static inline void each_head(int heads, Body body) {
  constexpr int kWidth = Vec<A>::kWidth;
  for (int h = 0; h < heads; h += kWidth) body(h, heads - h < kWidth ? heads - h : kWidth);
}

template <class A>
struct Scores {
  using V = Vec<A>;
  int heads;
  const A* src;
  int64_t src_stride;
  const A* dst;
  int64_t dst_stride;
  const A* edge;
  V slope;
  bool drop;
  uint64_t seed;
  uint32_t threshold;
  A scale;

  Scores(const GatShape& shape, const GatScores& s)
      : heads(int(shape.heads)),
        src(static_cast<const A*>(s.src.data)),
        src_stride(s.src.stride),
        dst(static_cast<const A*>(s.dst.data)),
        dst_stride(s.dst.stride),
        edge(static_cast<const A*>(s.edge)),
        slope(V::set(A(s.negative_slope))),
        drop(s.dropout.seed != nullptr),
        seed(drop ? uint64_t(*s.dropout.seed) : 0),
        threshold(keep_threshold(s.dropout.p)),
        scale(A(keep_scale(s.dropout.p))) {}

  V leaky(V s) const { return V::if_positive(s, s, slope * s); }

  // weight <- dropped(weight), [n, H]
  void dropout(GatScratch<A>& t, const int32_t* eid, int n) const {
    if (!drop) return;
    const int groups = (heads + 3) / 4, padded = groups * 4;
    uint32_t* words = t.words;
    if (padded == heads) {
      philox_words(seed, eid, n, groups, words);
    } else {
      philox_words(seed, eid, n, groups, t.padded);
      for (int e = 0; e < n; ++e) {
        for (int h = 0; h < heads; ++h) words[e * heads + h] = t.padded[e * padded + h];
      }
    }
    const V factor = V::set(scale);
    for (int k = 0; k < n * heads; k += V::kWidth) {
      V::keep(V::load(t.weight + k) * factor, words + k, threshold).store(t.weight + k);
    }
  }
  // weight_pos <- weight where the score is positive
  void positive(GatScratch<A>& t, int n) const {
    for (int k = 0; k < n * heads; k += V::kWidth) {
      const V w = V::load(t.weight + k);
      V::if_positive(V::load(t.score + k), w, V::set(A(0))).store(t.weight_pos + k);
    }
  }
};

template <class A>
static inline void exponentials(A* weight, int n) {
  for (int k = 0; k < n; k += Vec<A>::kWidth) {
    Vec<A>::exp(Vec<A>::load(weight + k)).store(weight + k);
  }
}

// ---------------------------------------------------------------------------------- forward

template <class T, class A>
struct GatForwardJob {
  using V = Vec<A>;
  const GatForward& p;
  Scores<A> scores;
  HeadMap<A> map;
  Gather<T> x;
  int heads;
  int64_t width;

  GatForwardJob(const GatForward& params, char* memory)
      : p(params),
        scores(params.shape, params.scores),
        map(params.shape.heads, params.shape.channels, memory),
        x{static_cast<const T*>(params.x.data), params.x.stride,
          params.csr.col + params.csr.rowptr[params.csr.rows]},
        heads(int(params.shape.heads)),
        width(map.width) {}

  // Partial result of a segment: maximum, sum, positive sum [3, H], then out and out_pos.
  size_t partial_bytes() const { return (size_t(3 * heads) + 2 * size_t(width)) * sizeof(A); }
  A* stats_of(int64_t row) const { return static_cast<A*>(p.stats) + row * 3 * heads; }

  // score, weight = leaky(score), top = max(top, weight), for n edges from `edge` into `row`
  void score(int64_t row, int64_t edge, int n, A* score, A* weight, A* top, bool carry) const {
    const int32_t* col = p.csr.col + edge;
    const int32_t* eid = p.csr.eid + edge;
    const A* dst = scores.dst + row * scores.dst_stride;
    each_head<A>(heads, [&](int h, int lanes) {
      const V score_dst = V::load(dst + h, lanes);
      V best = carry ? V::load(top + h, lanes) : V::set(A(-INFINITY));
      for (int e = 0; e < n; ++e) {
        V s = V::load(scores.src + col[e] * scores.src_stride + h, lanes) + score_dst;
        if (scores.edge) s = s + V::load(scores.edge + int64_t(eid[e]) * heads + h, lanes);
        const V l = scores.leaky(s);
        best = V::max(best, l);
        s.store(score + e * heads + h, lanes);
        l.store(weight + e * heads + h, lanes);
      }
      best.store(top + h, lanes);
    });
  }
  void subtract(int n, A* weight, const A* top) const {
    each_head<A>(heads, [&](int h, int lanes) {
      // A row of -inf scores so far: keep -inf - 0, not -inf - -inf.
      const V best = V::max(V::set(std::numeric_limits<A>::lowest()), V::load(top + h, lanes));
      for (int e = 0; e < n; ++e) {
        (V::load(weight + e * heads + h, lanes) - best).store(weight + e * heads + h, lanes);
      }
    });
  }
  // sum += weights, sum_pos += weights of positive scores
  void add_up(int n, const A* score, const A* weight, A* sum, A* sum_pos, bool carry) const {
    each_head<A>(heads, [&](int h, int lanes) {
      V all = carry ? V::load(sum + h, lanes) : V::set(A(0));
      V pos = carry ? V::load(sum_pos + h, lanes) : V::set(A(0));
      for (int e = 0; e < n; ++e) {
        const V w = V::load(weight + e * heads + h, lanes);
        all = all + w;
        pos = pos + V::if_positive(V::load(score + e * heads + h, lanes), w, V::set(A(0)));
      }
      all.store(sum + h, lanes);
      pos.store(sum_pos + h, lanes);
    });
  }
  // stats[1] = 1 / sum, stats[2] = positive share
  void finish_stats(A* stats) const {
    each_head<A>(heads, [&](int h, int lanes) {
      for (int k = h; k < h + lanes; ++k) {
        const A inverse = A(1) / stats[heads + k];
        stats[heads + k] = inverse;
        stats[2 * heads + k] *= inverse;
      }
    });
  }

  // Rows of at most kBlock edges in all, scored together.
  void block(int64_t begin, int64_t end, GatScratch<A>& t) const {
    const int64_t* rowptr = p.csr.rowptr;
    const int64_t edge = rowptr[begin];
    const int n = int(rowptr[end] - edge);
    for (int64_t row = begin; row < end; ++row) {
      const int at = int(rowptr[row] - edge), count = int(rowptr[row + 1] - rowptr[row]);
      A* top = stats_of(row);
      if (count == 0) {
        std::memset(top, 0, size_t(3 * heads) * sizeof(A));
        continue;
      }
      score(row, rowptr[row], count, t.score + at * heads, t.weight + at * heads, top, false);
      subtract(count, t.weight + at * heads, top);
    }
    exponentials(t.weight, n * heads);
    for (int64_t row = begin; row < end; ++row) {
      const int at = int(rowptr[row] - edge), count = int(rowptr[row + 1] - rowptr[row]);
      if (count == 0) continue;
      A* stats = stats_of(row);
      A* weight = t.weight + at * heads;
      add_up(count, t.score + at * heads, weight, stats + heads, stats + 2 * heads, false);
      finish_stats(stats);
      each_head<A>(heads, [&](int h, int lanes) {
        const V inverse = V::load(stats + heads + h, lanes);
        for (int e = 0; e < count; ++e) {
          (V::load(weight + e * heads + h, lanes) * inverse).store(weight + e * heads + h, lanes);
        }
      });
    }
    scores.dropout(t, p.csr.eid + edge, n);
    if (p.out_pos) scores.positive(t, n);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = rowptr[row] - edge;
      A* out_pos = p.out_pos ? static_cast<A*>(p.out_pos) + row * width : nullptr;
      accumulate(map, x, p.csr.col + rowptr[row], int(rowptr[row + 1] - rowptr[row]),
                 t.weight + at * heads, t.weight_pos + at * heads, false,
                 static_cast<A*>(p.out) + row * width, out_pos);
    }
  }

  // Edges [begin, end) of one row, block by block: a running softmax whose maximum, sums and rows
  // are rescaled when a block raises the maximum.
  void run(int64_t row, int64_t begin, int64_t end, A* top, A* sum, A* sum_pos, A* out, A* out_pos,
           GatScratch<A>& t) const {
    for (int64_t edge = begin; edge < end; edge += kBlock) {
      const int n = int(end - edge < kBlock ? end - edge : kBlock);
      const bool carry = edge != begin;
      A* before = t.head_a;
      if (carry) std::memcpy(before, top, size_t(heads) * sizeof(A));
      score(row, edge, n, t.score, t.weight, top, carry);
      if (carry && std::memcmp(before, top, size_t(heads) * sizeof(A)) != 0) {
        for (int h = 0; h < heads; ++h) t.head_b[h] = std::exp(before[h] - top[h]);
        rescale(t.head_b, sum, sum_pos, out, out_pos);
      }
      subtract(n, t.weight, top);
      exponentials(t.weight, n * heads);
      add_up(n, t.score, t.weight, sum, sum_pos, carry);
      scores.dropout(t, p.csr.eid + edge, n);
      if (out_pos) scores.positive(t, n);
      accumulate(map, x, p.csr.col + edge, n, t.weight, t.weight_pos, carry, out, out_pos);
    }
  }
  void rescale(const A* factor, A* sum, A* sum_pos, A* out, A* out_pos) const {
    for (int h = 0; h < heads; ++h) {
      sum[h] *= factor[h];
      sum_pos[h] *= factor[h];
      scale_head(factor[h], h, out);
      if (out_pos) scale_head(factor[h], h, out_pos);
    }
  }
  void scale_head(A factor, int h, A* row) const {
    for (int64_t f = int64_t(h) * map.channels; f < int64_t(h + 1) * map.channels; ++f) {
      row[f] *= factor;
    }
  }
  // out / sum into the result
  void finish_row(int64_t row, const A* out, const A* out_pos) const {
    A* stats = stats_of(row);
    finish_stats(stats);
    for (int h = 0; h < heads; ++h) {
      const A inverse = stats[heads + h];
      for (int64_t c = 0; c < map.channels; ++c) {
        const int64_t f = int64_t(h) * map.channels + c, at = row * width + f;
        static_cast<A*>(p.out)[at] = out[f] * inverse;
        if (p.out_pos) static_cast<A*>(p.out_pos)[at] = out_pos[f] * inverse;
      }
    }
  }

  static void rows(void* context, int64_t begin, int64_t end, char* memory) {
    const auto& job = *static_cast<const GatForwardJob*>(context);
    const int64_t* rowptr = job.p.csr.rowptr;
    GatScratch<A> t(memory, job.heads, job.width);
    for (int64_t row = begin; row < end;) {
      int64_t stop = row;
      while (stop < end && rowptr[stop + 1] - rowptr[row] <= kBlock) ++stop;
      if (stop > row) {
        job.block(row, stop, t);
        row = stop;
        continue;
      }
      A* stats = job.stats_of(row);
      A* out_pos = job.p.out_pos ? t.row_pos : nullptr;
      job.run(row, rowptr[row], rowptr[row + 1], stats, stats + job.heads, stats + 2 * job.heads,
              t.row, out_pos, t);
      job.finish_row(row, t.row, out_pos);
      ++row;
    }
  }
  static void segment(void* context, int64_t row, int64_t begin, int64_t end, char* partial,
                      char* memory) {
    const auto& job = *static_cast<const GatForwardJob*>(context);
    GatScratch<A> t(memory, job.heads, job.width);
    A* stats = reinterpret_cast<A*>(partial);
    A* out = stats + 3 * job.heads;
    job.run(row, begin, end, stats, stats + job.heads, stats + 2 * job.heads, out,
            job.p.out_pos ? out + job.width : nullptr, t);
  }
  static void merge(void* context, int64_t row, const char* partials, int64_t count, char* memory) {
    const auto& job = *static_cast<const GatForwardJob*>(context);
    const int heads = job.heads;
    const int64_t width = job.width;
    GatScratch<A> t(memory, heads, width);
    A* stats = job.stats_of(row);
    const auto part = [&](int64_t k) {
      return reinterpret_cast<const A*>(partials + size_t(k) * job.partial_bytes());
    };
    std::memcpy(stats, part(0), size_t(heads) * sizeof(A));
    for (int64_t k = 1; k < count; ++k) {
      for (int h = 0; h < heads; ++h) {
        const A top = part(k)[h];
        if (!(top <= stats[h])) stats[h] = top;
      }
    }
    std::memset(stats + heads, 0, size_t(2 * heads) * sizeof(A));
    std::memset(t.row, 0, size_t(width) * sizeof(A));
    std::memset(t.row_pos, 0, size_t(width) * sizeof(A));
    for (int64_t k = 0; k < count; ++k) {
      const A* from = part(k);
      const A* out = from + 3 * heads;
      for (int h = 0; h < heads; ++h) {
        const A factor = std::exp(from[h] - stats[h]);
        stats[heads + h] += factor * from[heads + h];
        stats[2 * heads + h] += factor * from[2 * heads + h];
        for (int64_t f = int64_t(h) * job.map.channels; f < int64_t(h + 1) * job.map.channels; ++f) {
          t.row[f] += factor * out[f];
          if (job.p.out_pos) t.row_pos[f] += factor * out[width + f];
        }
      }
    }
    job.finish_row(row, t.row, t.row_pos);
  }
};

template <class T, class A>
static Status gat_forward(const GatForward& p) {
  const int64_t width = p.shape.heads * p.shape.channels;
  char* memory = allocate(HeadMap<A>::bytes(width));
  if (memory == nullptr) return Status::kOutOfMemory;
  using Job = GatForwardJob<T, A>;
  Job job(p, memory);
  const Status status =
      run_rows(p.csr.rowptr, p.csr.rows, p.shape.threads,
               {&job, Job::rows, Job::segment, Job::merge,
                GatScratch<A>::bytes(p.shape.heads, width), job.partial_bytes()});
  release(memory);
  return status;
}

// ---------------------------------------------------------------------------------- attention

template <class A>
struct GatAlphaJob {
  using V = Vec<A>;
  const GatAlpha& p;
  GatForward forward_params;
  char no_features[1];
  GatForwardJob<A, A> forward;

  explicit GatAlphaJob(const GatAlpha& params)
      : p(params), forward_params(as_forward(params)), forward(forward_params, no_features) {}

  static GatForward as_forward(const GatAlpha& a) {
    GatForward f{};
    f.shape = a.shape;
    f.shape.channels = 0;
    f.csr = a.csr;
    f.scores = a.scores;
    return f;
  }
  void run(int64_t row, int64_t begin, int64_t end, GatScratch<A>& t) const {
    const int heads = forward.heads;
    const A* stats = static_cast<const A*>(p.stats) + row * 3 * heads;
    for (int64_t edge = begin; edge < end; edge += kBlock) {
      const int n = int(end - edge < kBlock ? end - edge : kBlock);
      const int32_t* eid = p.csr.eid + edge;
      forward.score(row, edge, n, t.score, t.weight, t.head_a, false);
      forward.subtract(n, t.weight, stats);
      exponentials(t.weight, n * heads);
      forward.scores.dropout(t, eid, n);
      for (int e = 0; e < n; ++e) {
        A* alpha = static_cast<A*>(p.alpha) + int64_t(eid[e]) * heads;
        for (int h = 0; h < heads; ++h) alpha[h] = t.weight[e * heads + h] * stats[heads + h];
      }
    }
  }
  static void rows(void* context, int64_t begin, int64_t end, char* memory) {
    const auto& job = *static_cast<const GatAlphaJob*>(context);
    GatScratch<A> t(memory, job.forward.heads, 0);
    const int64_t* rowptr = job.p.csr.rowptr;
    for (int64_t row = begin; row < end; ++row) job.run(row, rowptr[row], rowptr[row + 1], t);
  }
  static void segment(void* context, int64_t row, int64_t begin, int64_t end, char*, char* memory) {
    const auto& job = *static_cast<const GatAlphaJob*>(context);
    GatScratch<A> t(memory, job.forward.heads, 0);
    job.run(row, begin, end, t);
  }
  static void merge(void*, int64_t, const char*, int64_t, char*) {}
};

template <class A>
static Status gat_alpha(const GatAlpha& p) {
  using Job = GatAlphaJob<A>;
  Job job(p);
  return run_rows(p.csr.rowptr, p.csr.rows, p.shape.threads,
                  {&job, Job::rows, Job::segment, Job::merge,
                   GatScratch<A>::bytes(p.shape.heads, 0), 0});
}

}  // namespace GK_ISA
}  // namespace gatkernels
