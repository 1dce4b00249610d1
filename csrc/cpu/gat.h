// GAT forward on CPU: one pass over CSR. Included once per instruction set. Names and formulas as
// in gatkernels/reference.py and the README's mathematics.
#pragma once
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>

#include "rows.h"

namespace gatkernels {
namespace GK_ISA {

// Scratch of a thread, carved from one piece of memory; a vector past each array may be touched.
template <class A>
struct GatScratch {
  A *score, *weight, *weight_pos;  // [kBlock, slots]
  uint32_t *words, *padded;        // Philox words, [kBlock, slots] and [kBlock, 4]
  A *top, *sum, *sum_pos, *head;   // [slots]
  A *row, *row_pos;                // [H * C]

  GatScratch(char* memory, int64_t heads, int64_t width) { carve(memory, heads, width); }
  static size_t bytes(int64_t heads, int64_t width) {
    GatScratch t(nullptr, heads, width);
    return t.used;
  }

 private:
  size_t used = 0;
  void carve(char* memory, int64_t heads, int64_t width) {
    const size_t lanes = size_t(slots<A>(heads));
    const auto take = [&](size_t size) {
      char* p = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(memory) + used);
      used += (size + 64 + 63) / 64 * 64;
      return p;
    };
    for (A** p : {&score, &weight, &weight_pos}) {
      *p = reinterpret_cast<A*>(take(kBlock * lanes * sizeof(A)));
    }
    words = reinterpret_cast<uint32_t*>(take(kBlock * (lanes + 4) * sizeof(uint32_t)));
    padded = reinterpret_cast<uint32_t*>(take(kBlock * 4 * sizeof(uint32_t)));
    for (A** p : {&top, &sum, &sum_pos, &head}) *p = reinterpret_cast<A*>(take(lanes * sizeof(A)));
    for (A** p : {&row, &row_pos}) *p = reinterpret_cast<A*>(take(size_t(width) * sizeof(A)));
  }
};

// The scores of edges, and what becomes of them; kHeads = slot(heads).
template <class A, int kHeads>
struct Scores {
  using V = Vec<A>;
  static constexpr int kEdges = V::kWidth / kHeads;  // per vector
  int heads;
  int stride;  // slots(heads): values per edge in the scratch arrays
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
        stride(int(slots<A>(shape.heads))),
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

  // Calls body(h, lanes) for each slot of heads.
  template <class Body>
  void each_slot(Body body) const {
    for (int h = 0; h < heads; h += kHeads) body(h, heads - h < kHeads ? heads - h : kHeads);
  }
  // Calls body(place, first edge, edges) for each vector of a slot; place is in the scratch.
  template <class Body>
  void each_vector(int h, int n, Body body) const {
    for (int e = 0; e < n; e += kEdges) body(e * stride + h, e, n - e < kEdges ? n - e : kEdges);
  }
  // Asks for the values at p + col[k] * distance of the edges some way ahead.
  static void prefetch(const A* p, int64_t distance, const int32_t* col, const int32_t* col_end) {
    for (int k = 0; k < kEdges; ++k) {
      const int32_t* ahead = col + kScorePrefetch + k < col_end ? col + kScorePrefetch + k : col;
      __builtin_prefetch(p + int64_t(*ahead) * distance);
    }
  }
  // p[0 : lanes] for every edge of a vector
  static V repeat(const A* p, int lanes) {
    const int32_t first = 0;
    return V::template load_edges<kHeads>(p, 0, &first, 1, lanes);
  }
  V leaky(V s) const { return V::if_positive(s, s, slope * s); }
  V leaky_slope(V s) const { return V::if_positive(s, V::set(A(1)), slope); }

  // s = ends + edge score, for the edges of one vector
  V add_edge(V ends, const int32_t* eid, int h, int edges, int lanes) const {
    if (edge == nullptr) return ends;
    return ends + V::template load_edges<kHeads>(edge + h, heads, eid, edges, lanes);
  }

  // weight <- dropped(weight * factor), weight_pos <- weight where the score is positive;
  // factor [slots] may be null, and weight_pos not wanted.
  void weigh(GatScratch<A>& t, const int32_t* eid, int n, const A* factor, bool pair) const {
    if (drop) draw(t, eid, n);
    each_slot([&](int h, int lanes) {
      V times = factor ? repeat(factor + h, lanes) : V::set(A(1));
      if (drop) times = times * V::set(scale);
      each_vector(h, n, [&](int at, int, int) {
        V w = V::load(t.weight + at) * times;
        if (drop) w = V::keep(w, t.words + at, threshold);
        w.store(t.weight + at);
        if (pair) V::if_positive(V::load(t.score + at), w, V::set(A(0))).store(t.weight_pos + at);
      });
    });
  }

 private:
  void draw(GatScratch<A>& t, const int32_t* eid, int n) const {
    if (stride >= 4) {
      philox_words(seed, eid, n, (heads + 3) / 4, stride, t.words);
      return;
    }
    philox_words(seed, eid, n, 1, 4, t.padded);
    for (int e = 0; e < n; ++e) {
      for (int h = 0; h < stride; ++h) t.words[e * stride + h] = t.padded[e * 4 + h];
    }
  }
};

template <class T, class A, int kHeads>
struct GatForwardJob {
  using V = Vec<A>;
  const GatForward& p;
  Scores<A, kHeads> scores;
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

  // Partial result of a segment: maximum, sum, positive sum [3, slots], then out and out_pos.
  int64_t partial_size() const { return 3 * scores.stride + 2 * width; }

  // score, weight = leaky(score), top = max(top, weight) for n edges into `row` from `edge` on
  void score(int64_t row, int64_t edge, int n, GatScratch<A>& t, A* top, bool carry) const {
    const int32_t* col = p.csr.col + edge;
    const int32_t* eid = p.csr.eid + edge;
    const A* dst = scores.dst + row * scores.dst_stride;
    scores.each_slot([&](int h, int lanes) {
      const V score_dst = scores.repeat(dst + h, lanes);
      V best = carry ? scores.repeat(top + h, lanes) : V::set(-std::numeric_limits<A>::infinity());
      scores.each_vector(h, n, [&](int at, int e, int edges) {
        scores.prefetch(scores.src + h, scores.src_stride, col + e, x.col_end);
        const V ends = V::template load_edges<kHeads>(scores.src + h, scores.src_stride, col + e,
                                                      edges, lanes) +
                       score_dst;
        const V s = scores.add_edge(ends, eid + e, h, edges, lanes);
        const V l = scores.leaky(s);
        best = V::max(best, l);
        s.store(t.score + at);
        l.store(t.weight + at);
      });
      V::template fold<kHeads>(best, V::max).store(top + h, lanes);
    });
  }
  // weight = exp(weight - top); sum and sum_pos (+)= weights, those of positive score
  void exponentials(int n, GatScratch<A>& t, const A* top, A* sum, A* sum_pos, bool carry) const {
    const V zero = V::set(A(0));
    const auto add = [](V a, V b) { return a + b; };
    scores.each_slot([&](int h, int lanes) {
      // A maximum of -inf (all edges masked so far): keep -inf - lowest, not -inf - -inf.
      const V best =
          V::max(V::set(std::numeric_limits<A>::lowest()), scores.repeat(top + h, lanes));
      V all = zero, positive = zero;
      scores.each_vector(h, n, [&](int at, int, int edges) {
        const V w = V::exp(V::load(t.weight + at) - best);
        w.store(t.weight + at);
        const V there = edges < scores.kEdges ? V::merge(edges * kHeads, w, zero) : w;
        all = all + there;
        positive = positive + V::if_positive(V::load(t.score + at), there, zero);
      });
      all = V::template fold<kHeads>(all, add);
      positive = V::template fold<kHeads>(positive, add);
      if (carry) {
        all = all + scores.repeat(sum + h, lanes);
        positive = positive + scores.repeat(sum_pos + h, lanes);
      }
      all.store(sum + h, lanes);
      positive.store(sum_pos + h, lanes);
    });
  }

  // Edges [begin, end) of one row, block by block: a running softmax whose sums and rows are
  // rescaled when a block raises the maximum.
  void run(int64_t row, int64_t begin, int64_t end, A* top, A* sum, A* sum_pos, A* out, A* out_pos,
           GatScratch<A>& t) const {
    for (int64_t edge = begin; edge < end; edge += kBlock) {
      const int n = int(end - edge < kBlock ? end - edge : kBlock);
      const bool carry = edge != begin;
      if (carry) std::memcpy(t.head, top, size_t(heads) * sizeof(A));
      score(row, edge, n, t, top, carry);
      if (carry && std::memcmp(t.head, top, size_t(heads) * sizeof(A)) != 0) {
        for (int h = 0; h < heads; ++h) {
          const A factor = std::exp(t.head[h] - top[h]);
          sum[h] *= factor;
          sum_pos[h] *= factor;
          scale_head(factor, h, out);
          if (out_pos) scale_head(factor, h, out_pos);
        }
      }
      exponentials(n, t, top, sum, sum_pos, carry);
      scores.weigh(t, p.csr.eid + edge, n, nullptr, out_pos != nullptr);
      accumulate(map, x, p.csr.col + edge, n, t.weight, t.weight_pos, scores.stride, carry, out,
                 out_pos);
    }
  }
  void scale_head(A factor, int h, A* row) const {
    for (int64_t f = int64_t(h) * map.channels; f < int64_t(h + 1) * map.channels; ++f) {
      row[f] *= factor;
    }
  }
  A* out_of(int64_t row) const { return static_cast<A*>(p.out) + row * width; }
  A* out_pos_of(int64_t row) const {
    return p.out_pos ? static_cast<A*>(p.out_pos) + row * width : nullptr;
  }
  // stats of a row from its maximum, sum and positive sum; sum <- 1 / sum
  void finish_stats(int64_t row, GatScratch<A>& t) const {
    A* stats = static_cast<A*>(p.stats) + row * 3 * heads;
    scores.each_slot([&](int h, int lanes) {
      const V inverse = V::set(A(1)) / V::load(t.sum + h, lanes);
      inverse.store(t.sum + h, lanes);
      if (p.stats == nullptr) return;
      V::load(t.top + h, lanes).store(stats + h, lanes);
      inverse.store(stats + heads + h, lanes);
      (V::load(t.sum_pos + h, lanes) * inverse).store(stats + 2 * heads + h, lanes);
    });
  }
  // out = row / sum
  void finish_row(int64_t row, GatScratch<A>& t) const {
    finish_stats(row, t);
    for (int h = 0; h < heads; ++h) {
      for (int64_t c = 0; c < map.channels; ++c) {
        const int64_t f = int64_t(h) * map.channels + c;
        out_of(row)[f] = t.row[f] * t.sum[h];
        if (p.out_pos) out_pos_of(row)[f] = t.row_pos[f] * t.sum[h];
      }
    }
  }

  // A row of at most kBlock edges.
  void short_row(int64_t row, int64_t edge, int n, GatScratch<A>& t) const {
    if (n == 0) {
      if (p.stats) {
        std::memset(static_cast<A*>(p.stats) + row * 3 * heads, 0, size_t(3 * heads) * sizeof(A));
      }
    } else {
      score(row, edge, n, t, t.top, false);
      exponentials(n, t, t.top, t.sum, t.sum_pos, false);
      finish_stats(row, t);
      scores.weigh(t, p.csr.eid + edge, n, t.sum, p.out_pos != nullptr);
    }
    accumulate(map, x, p.csr.col + edge, n, t.weight, t.weight_pos, scores.stride, false,
               out_of(row), out_pos_of(row));
  }

  static void rows(void* context, int64_t begin, int64_t end, char* memory) {
    const auto& job = *static_cast<const GatForwardJob*>(context);
    const int64_t* rowptr = job.p.csr.rowptr;
    GatScratch<A> t(memory, job.heads, job.width);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = rowptr[row + 1] - rowptr[row];
      if (n <= kBlock) {
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
    const auto& job = *static_cast<const GatForwardJob*>(context);
    GatScratch<A> t(memory, job.heads, job.width);
    const int stride = job.scores.stride;
    A* top = reinterpret_cast<A*>(partial);
    A* out = top + 3 * stride;
    job.run(row, begin, end, top, top + stride, top + 2 * stride, out,
            job.p.out_pos ? out + job.width : nullptr, t);
  }
  static void merge(void* context, int64_t row, const char* partials, int64_t count, char* memory) {
    const auto& job = *static_cast<const GatForwardJob*>(context);
    const int heads = job.heads, stride = job.scores.stride;
    const int64_t width = job.width;
    GatScratch<A> t(memory, heads, width);
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
};

template <class T, class A, int kHeads>
static Status gat_forward_slot(const GatForward& p, char* memory) {
  using Job = GatForwardJob<T, A, kHeads>;
  Job job(p, memory);
  return run_rows(
      p.csr.rowptr, p.csr.rows, p.shape.threads,
      {&job, Job::rows, Job::segment, Job::merge, GatScratch<A>::bytes(p.shape.heads, job.width),
       size_t(job.partial_size()) * sizeof(A)});
}

// Calls run<kHeads>() for the slot of this many heads.
#define GK_FOR_SLOT(A, heads, run)         \
  switch (slot<A>(heads)) {                \
    case 1:                                \
      run(1);                              \
    case 2:                                \
      run(2);                              \
    case 4:                                \
      run((Vec<A>::kWidth < 4 ? 1 : 4));   \
    case 8:                                \
      run((Vec<A>::kWidth < 8 ? 1 : 8));   \
    default:                               \
      run((Vec<A>::kWidth < 16 ? 1 : 16)); \
  }

template <class T, class A>
static Status gat_forward(const GatForward& p) {
  char* memory = allocate(HeadMap<A>::bytes(p.shape.heads * p.shape.channels));
  if (memory == nullptr) return Status::kOutOfMemory;
  const auto run = [&]() {
#define GK_RUN(kHeads) return gat_forward_slot<T, A, kHeads>(p, memory)
    GK_FOR_SLOT(A, p.shape.heads, GK_RUN)
#undef GK_RUN
  };
  const Status status = run();
  release(memory);
  return status;
}

}  // namespace GK_ISA
}  // namespace gatkernels
