// Scores that are dot products, scale (<q_i, k_j> + <edge_query_i, edge_e>), and their forward.
#pragma once
#include "head_sums.h"
#include "rowwise.h"

namespace gatkernels {
namespace GK_ISA {

static inline Shape with_channels(Shape shape, int64_t channels) {
  shape.channels = channels;
  return shape;
}

template <class T>
static inline const T* row_of(const Gather<T>& rows, int64_t i) {
  return rows.data + i * rows.stride;
}

// A row in the type of sums: itself, or a copy in `to`.
template <class T, class A>
static inline const A* widened(const T* row, int64_t width, A* to) {
  if constexpr (std::is_same_v<T, A>) {
    return row;
  } else {
    store_row<A>(row, width, to);
    return to;
  }
}

template <class A>
static inline void multiply(A factor, int64_t count, A* values) {
  using V = Vec<A>;
  int64_t k = 0;
  for (; k + V::kWidth <= count; k += V::kWidth) {
    (V::load(values + k) * V::set(factor)).store(values + k);
  }
  for (; k < count; ++k) values[k] *= factor;
}

// sum (+)= sum_e w[e] row(col[e])
template <class A, class T>
static inline void add_rows(const HeadMap<A>& map, const Gather<T>& from, const int32_t* col, int n,
                            const A* w, bool carry, A* sum) {
  accumulate<A, T>(map, from, col, n, w, w, int(slots<A>(map.heads)), carry, sum, nullptr);
}

// totals[e, h] = the dot products of row `own` and the rows `col` of n edges, [n, slots]; `also`
// (e) prefetches what else an edge reads.
template <bool kUnrolled, class A, class T, class Also>
static inline void sum_dots(const HeadMap<A>& map, const A* own, const Gather<T>& rows,
                            const int32_t* col, int n, A* totals, const Also& also) {
  A* const to[] = {totals};
  sum_heads<kUnrolled>(
      map, n, to,
      [&](int e) GK_INLINED {
        const T* row = row_of(rows, col[e]);
        return [own, row](int64_t f, int lanes) GK_INLINED {
          return Kinds<A, 1>{{load_row<A>(own + f, lanes) * load_row<A>(row + f, lanes)}};
        };
      },
      [&](int e, int64_t f, int64_t count) GK_INLINED {
        prefetch_row(rows, f, count, col + e);
        if (f == 0) also(e);
      });
}

// Features of edges [E, F], of which every head reads the same row.
template <class T, class A>
struct EdgeFeatures {
  using V = Vec<A>;
  Gather<T> rows;  // by eid
  int heads;
  int64_t features;  // 0 without them

  EdgeFeatures(const DotScores& scores, const Shape& shape, const Edges& edges)
      : rows({const_cast<void*>(scores.edge), scores.features, edges.rowptr[edges.rows]},
             {edges.rowptr, edges.eid, edges.eid, edges.draw, edges.rows}),
        heads(int(shape.heads)),
        features(scores.features) {}

  explicit operator bool() const { return features > 0; }
  int64_t width() const { return heads * features; }
  int lanes_at(int64_t f) const { return features - f < V::kWidth ? int(features - f) : V::kWidth; }
  GK_INLINE void prefetch(const int32_t* eid) const { prefetch_row(rows, 0, features, eid); }
  // The place of a gradient [E, F], to be written
  GK_INLINE void prefetch_gradient(const void* grad, const int32_t* eid) const {
    prefetch_row(Gather<T>(static_cast<const T*>(grad), features, rows), 0, features, eid);
  }

  // dot[h] += sum_f query[h, f] row[f]
  template <class S>
  void add_dots(const S* query, int32_t eid, A* dot) const {
    const T* row = row_of(rows, eid);
    if (features == V::kWidth / 2) return add_few_dots<V::kWidth / 2>(query, row, dot, heads);
    if constexpr (V::kWidth >= 4) {
      if (features == V::kWidth / 4) return add_few_dots<V::kWidth / 4>(query, row, dot, heads);
    }
    alignas(64) A sums[V::kWidth];
    for (int h = 0; h < heads; ++h, query += features) {
      V sum = V::set(A(0));
      for (int64_t f = 0; f < features; f += V::kWidth) {
        const int lanes = lanes_at(f);
        sum = V::fma(load_row<A>(query + f, lanes), load_row<A>(row + f, lanes), sum);
      }
      V::group_sum(sum, V::kWidth).store(sums);
      dot[h] += sums[0];
    }
  }
  // The same of kFew features, for all heads that a vector has room for together.
  template <int kFew, class S>
  static void add_few_dots(const S* query, const T* row, A* dot, int heads) {
    constexpr int kHeads = V::kWidth / kFew;
    alignas(64) A few[kFew], sums[V::kWidth];
    const V repeated = V::template repeat<kFew>(widened(row, kFew, few), kFew);
    for (int h = 0; h < heads; h += kHeads, query += V::kWidth) {
      const int count = heads - h < kHeads ? heads - h : kHeads;
      V::group_sum(load_row<A>(query, count * kFew) * repeated, kFew).store(sums);
      for (int k = 0; k < count; ++k) dot[h + k] += sums[k * kFew];
    }
  }

  // sum[h, f] (+)= sum_e w[e, h] row(e)[f]
  void accumulate(const int32_t* eid, int n, const A* w, int stride, bool carry, A* sum) const {
    for (int h = 0; h < heads; h += kTile) {
      with_count<kTile>(heads - h, [&](auto count) {
        for (int64_t f = 0; f < features; f += V::kWidth) {
          accumulate_tile<decltype(count)::value>(f, eid, n, w + h, stride, carry,
                                                  sum + h * features + f);
        }
      });
    }
  }
  template <int kHeads>
  void accumulate_tile(int64_t f, const int32_t* eid, int n, const A* w, int stride, bool carry,
                       A* sum) const {
    const int lanes = lanes_at(f);
    V acc[kHeads];
    unrolled<kHeads>([&](auto k) GK_INLINED {
      acc[k] = carry ? V::load(sum + k * features, lanes) : V::set(A(0));
    });
    for (int e = 0; e < n; ++e, w += stride) {
      const V row = load_row<A>(row_of(rows, eid[e]) + f, lanes);
      unrolled<kHeads>([&](auto k) GK_INLINED { acc[k] = V::fma(row, V::set(w[k]), acc[k]); });
    }
    unrolled<kHeads>([&](auto k) GK_INLINED { acc[k].store(sum + k * features, lanes); });
  }
};

// The logits of a destination's edges, for forward.h.
template <class T, class A>
struct DotScorer {
  const HeadMap<A>& map;
  Gather<T> q, k, v, edge_query;
  EdgeFeatures<T, A> edge;
  int64_t v_width;  // 0 where values are not read
  A scale;
  int64_t block;

  template <class Params>
  DotScorer(const Params& p, const HeadMap<A>& map_, const Gather<T>& k_)
      : DotScorer(p.scores, p.shape, p.csr, values(p), map_, k_) {}
  DotScorer(const DotScores& scores, const Shape& shape, const Edges& csr, const DotValues& values,
            const HeadMap<A>& map_, const Gather<T>& k_)
      : map(map_),
        q(scores.q, csr),
        k(k_),
        v(values.rows, csr),
        edge_query(scores.edge_query, csr),
        edge(scores, shape, csr),
        v_width(shape.heads * values.channels),
        scale(A(scores.scale)),
        block(edges_in_cache((map.width + v_width + edge.features) * int64_t(sizeof(T)))) {}

  static DotValues values(const DotForward& p) { return p.v; }
  static DotValues values(const DotAlpha&) { return {{nullptr, 0, 0}, 0}; }

  // Of a thread's scratch: a destination's q and edge_query in the type of sums.
  int64_t scratch_width() const { return map.width + edge.width(); }

  // weight = logits, top = max(top, weight)
  void score(const Heads<A>& of, int64_t row, const Block& edges, const Scratch<A>& t, A* top,
             bool carry) const {
    const A* q_i = widened(row_of(q, row), map.width, t.row_pos);
    const A* query = nullptr;
    if (edge) query = widened(row_of(edge_query, row), edge.width(), t.row_pos + map.width);
    sum_dots<unrolls<T>()>(map, q_i, k, edges.col, edges.n, t.weight, [&](int e) GK_INLINED {
      prefetch_row(v, 0, v_width, edges.col + e);
      if (edge) edge.prefetch(edges.eid + e);
    });
    for (int e = 0; edge && e < edges.n; ++e) {
      edge.add_dots(query, edges.eid[e], t.weight + e * of.stride);
    }
    multiply(scale, edges.n * of.stride, t.weight);
    of.loops.raise_top(of, edges.n, t, top, carry);
  }
};

// A running softmax as ForwardJob's, of two results: sums of values, and of features of edges. They
// lie one behind the other, [H * D + H * F].
template <class T, class A>
struct DotForwardJob : Scored<T, A, DotScorer<T, A>> {
  using Base = Scored<T, A, DotScorer<T, A>>;
  using Base::block_of, Base::csr, Base::heads, Base::of, Base::scorer;
  const DotForward& p;
  HeadMap<A> v_map;
  int64_t results;

  explicit DotForwardJob(const DotForward& params)
      : Base(params, params.scores.k),
        p(params),
        v_map(with_channels(params.shape, params.v.channels)),
        results(v_map.width + scorer.edge.width()) {}

  int64_t scratch_width() const {
    return results > scorer.scratch_width() ? results : scorer.scratch_width();
  }
  // of one head
  void scale_results(A factor, int h, A* sums) const {
    const int64_t features = scorer.edge.features;
    multiply(factor, v_map.channels, sums + int64_t(h) * v_map.channels);
    multiply(factor, features, sums + v_map.width + h * features);
  }

  // Edges [begin, end) of one row, block by block.
  void run(int64_t row, int64_t begin, int64_t end, A* top, A* sum, A* sums,
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
          scale_results(factor, h, sums);
        }
      }
      of.loops.exponentials(of, n, t, top, sum, t.sum_pos, carry, false);
      if (of.drop) of.loops.weigh(of, block, t, nullptr, false);
      add_rows(v_map, scorer.v, block.col, n, t.weight, carry, sums);
      if (scorer.edge) {
        scorer.edge.accumulate(block.eid, n, t.weight, of.stride, carry, sums + v_map.width);
      }
    }
  }
  A* stats_of(int64_t row) const { return static_cast<A*>(p.stats) + row * 3 * heads; }
  T* out_of(int64_t row) const { return static_cast<T*>(p.out) + row * v_map.width; }
  T* edge_out_of(int64_t row) const {
    return static_cast<T*>(p.edge_out) + row * scorer.edge.width();
  }
  // Results and statistics of a row from t.top, t.sum and t.row
  void finish(int64_t row, const Scratch<A>& t) const {
    for (int h = 0; h < heads; ++h) {
      const A inverse = A(1) / t.sum[h];
      scale_results(inverse, h, t.row);
      if (p.stats == nullptr) continue;
      A* stats = stats_of(row) + h;
      stats[0] = t.top[h];
      stats[heads] = inverse;
      stats[2 * heads] = A(0);
    }
    store_row<A>(t.row, v_map.width, out_of(row));
    if (scorer.edge) store_row<A>(t.row + v_map.width, scorer.edge.width(), edge_out_of(row));
  }
  void clear(int64_t row) const {
    clear_values(out_of(row), v_map.width);
    if (scorer.edge) clear_values(edge_out_of(row), scorer.edge.width());
    if (p.stats) std::memset(stats_of(row), 0, size_t(3 * heads) * sizeof(A));
  }

  void rows(int64_t, int64_t begin, int64_t end, const Scratch<A>& t) const {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t first = csr.rowptr[row], last = csr.rowptr[row + 1];
      if (first == last) {
        clear(row);
        continue;
      }
      run(row, first, last, t.top, t.sum, t.row, t);
      finish(row, t);
    }
  }
  // Partial result of a chunk: maximum, sum [2, slots], then the results.
  int64_t partial_size() const { return 2 * of.stride + results; }
  void chunk(int64_t row, int64_t begin, int64_t end, A* partial, const Scratch<A>& t) const {
    run(row, begin, end, partial, partial + of.stride, partial + 2 * of.stride, t);
  }
  void merge(int64_t row, int64_t, A* partials, int64_t count, const Scratch<A>& t) const {
    const auto part = [&](int64_t k) { return partials + k * partial_size(); };
    std::memcpy(t.top, part(0), size_t(heads) * sizeof(A));
    for (int64_t k = 1; k < count; ++k) {
      for (int h = 0; h < heads; ++h) {
        if (!(part(k)[h] <= t.top[h])) t.top[h] = part(k)[h];
      }
    }
    std::memset(t.sum, 0, size_t(heads) * sizeof(A));
    std::memset(t.row, 0, size_t(results) * sizeof(A));
    for (int64_t k = 0; k < count; ++k) {
      A* sums = part(k) + 2 * of.stride;
      for (int h = 0; h < heads; ++h) {
        const A factor = std::exp(part(k)[h] - t.top[h]);
        t.sum[h] += factor * part(k)[of.stride + h];
        scale_results(factor, h, sums);
      }
      for (int64_t f = 0; f < results; ++f) t.row[f] += sums[f];
    }
    finish(row, t);
  }
};

template <class T, class A>
static Status dot_forward(const DotForward& p) {
  const DotForwardJob<T, A> job(p);
  if (job.map.head == nullptr || job.v_map.head == nullptr) return Status::kOutOfMemory;
  return run_edges<A>(p.csr, p.shape, job.scratch_width(), job);
}

template <class T, class A>
static Status dot_alpha(const DotAlpha& p) {
  using Edges = Scored<T, A, DotScorer<T, A>>;
  const Edges edges(p, p.scores.k);
  if (edges.map.head == nullptr) return Status::kOutOfMemory;
  const AlphaJob<A, Edges> job{edges, static_cast<const A*>(p.stats), static_cast<A*>(p.alpha)};
  return run_edges<A>(p.csr, p.shape, edges.scorer.scratch_width(), job);
}

}  // namespace GK_ISA
}  // namespace gatkernels
