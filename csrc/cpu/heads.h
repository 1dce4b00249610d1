// The scores of a block's edges: the scratch they lie in, and what is done to them, edge by edge
// and head by head. None of it depends on how features are stored, so that the loops themselves
// (head_loops.h) are compiled once for each type of sums.
#pragma once
#include <cstring>
#include <initializer_list>

#include "rows.h"

namespace gatkernels {
namespace GK_ISA {

// Scratch of a thread, carved from one piece of memory; a vector past each array may be touched.
template <class A>
struct Scratch {
  A *score, *weight, *weight_pos;  // [kBlock, slots]
  uint32_t *words, *padded;        // Philox words, [kBlock, slots] and [kBlock, 4]
  A *top, *sum, *sum_pos, *head;   // [slots]
  A *row, *row_pos;                // [width]

  Scratch(char* memory, int64_t heads, int64_t width) { carve(memory, heads, width); }
  static size_t bytes(int64_t heads, int64_t width) {
    Scratch t(nullptr, heads, width);
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

// The edges of a block.
struct Block {
  const int32_t* col;
  const int32_t* eid;
  const int32_t* draw;     // what dropout draws by
  const int32_t* col_end;  // one past the graph's last column, so that prefetching stays inside
  int n;
};

// `n` edges from `edge` on.
static inline Block block_from(const Edges& edges, int64_t edge, const int32_t* col_end, int n) {
  const int32_t* draw = edges.draw ? edges.draw : edges.eid;
  return {edges.col + edge, edges.eid + edge, draw + edge, col_end, n};
}

// What GAT's scores come from; `src` and `dst` are those of the row's own side and of the others'.
template <class A>
struct GatTerms {
  const A* own;    // [H], of the block's row
  const A* other;  // [nodes, H], gathered by col
  int64_t other_stride;
  const A* edge_score;  // [E, H], or null
  A slope;
};

// Fields of destinations [nodes, 4, H], as a backward gathers them or has them for its row.
template <class A>
struct Fields {
  const A* data;
  int64_t stride;
};

template <class A>
struct Heads;

// The loops for one number of heads side by side in a vector.
template <class A>
struct HeadLoops {
  // score, weight = leaky(score), top = max(top, weight)
  void (*gat_score)(const Heads<A>&, const GatTerms<A>&, const Block&, const Scratch<A>&, A* top,
                    bool carry);
  // score, weight = alpha, sum (+)= -leaky' alpha delta, weight_pos = leaky' alpha delta if `keep`,
  // else weight where the score is positive; the fields are score_dst, row maximum, 1 / sum, delta,
  // and stand in for GatTerms::other
  void (*gat_alpha)(const Heads<A>&, const GatTerms<A>&, const Block&, const Scratch<A>&, A* sum,
                    bool carry, bool keep);
  // top = max(top, weight)
  void (*raise_top)(const Heads<A>&, int n, const Scratch<A>&, A* top, bool carry);
  // weight = alpha m and score = alpha (m (score + grad_alpha) - delta), from logits in weight;
  // fields: row maximum, 1 / sum, delta; of the block's row, or gathered by col
  void (*gradients_of_row)(const Heads<A>&, Fields<A>, const A* grad_alpha, const Block&,
                           const Scratch<A>&);
  void (*gradients_of_edges)(const Heads<A>&, Fields<A>, const A* grad_alpha, const Block&,
                             const Scratch<A>&);
  // weight = exp(weight - top), sum (+)= weights; with `pair` those of positive score too, in
  // weight_pos and sum_pos (which is 0 else)
  void (*exponentials)(const Heads<A>&, int n, const Scratch<A>&, const A* top, A* sum, A* sum_pos,
                       bool carry, bool pair);
  // weight <- dropped(weight * factor), weight_pos <- weight where the score is positive; factor
  // [slots] may be null, and weight_pos not wanted
  void (*weigh)(const Heads<A>&, const Block&, const Scratch<A>&, const A* factor, bool pair);
};

// Those for this many heads.
template <class A>
const HeadLoops<A>& head_loops(int64_t heads);

template <class A>
struct Heads {
  int heads;
  int stride;  // slots(heads): values per edge in the scratch arrays
  bool drop;
  uint64_t seed;
  uint32_t threshold;
  A scale;
  int first_head;  // to the draws
  const HeadLoops<A>& loops;

  Heads(const Shape& shape, const Dropout& dropout)
      : heads(int(shape.heads)),
        stride(int(slots<A>(shape.heads))),
        drop(dropout.seed != nullptr),
        seed(drop ? uint64_t(*dropout.seed) : 0),
        threshold(dropout.threshold),
        scale(A(dropout.scale)),
        first_head(int(dropout.first_head)),
        loops(head_loops<A>(shape.heads)) {}
};

// The edges of every row through a job: `rows` (task, begin, end), whole rows; `chunk` (row,
// begin, end, partial) and `merge` (row, index, partials, count) for long rows, whose partial
// results are of partial_size() sums. All get a scratch for rows of `width` features.
template <class A, class Job>
static Status run_edges(const Edges& edges, const Shape& shape, int64_t width, const Job& job) {
  const auto scratch = [&](char* memory) { return Scratch<A>(memory, shape.heads, width); };
  const auto rows = [&](int64_t task, int64_t begin, int64_t end, char* memory) {
    job.rows(task, begin, end, scratch(memory));
  };
  const auto chunk = [&](int64_t row, int64_t begin, int64_t end, char* partial, char* memory) {
    job.chunk(row, begin, end, reinterpret_cast<A*>(partial), scratch(memory));
  };
  const auto merge = [&](int64_t row, int64_t index, char* partials, int64_t count, char* memory) {
    job.merge(row, index, reinterpret_cast<A*>(partials), count, scratch(memory));
  };
  return run_rows(edges.rowptr, edges.rows, shape.threads,
                  {rows, chunk, merge, Scratch<A>::bytes(shape.heads, width),
                   size_t(job.partial_size()) * sizeof(A)});
}

// body(node, scratch) for each of `count` nodes.
template <class A, class Body>
static Status run_nodes(int64_t count, const Shape& shape, int64_t width, const Body& body) {
  return run_range(count, shape.threads, Scratch<A>::bytes(shape.heads, width),
                   [&](int64_t begin, int64_t end, char* memory) {
                     const Scratch<A> t(memory, shape.heads, width);
                     for (int64_t i = begin; i < end; ++i) body(i, t);
                   });
}

// Partial results of `size` sums each, added to the first of them.
template <class A>
static A* add_partials(A* partials, int64_t count, int64_t size) {
  for (int64_t k = 1; k < count; ++k) {
    for (int64_t f = 0; f < size; ++f) partials[f] += partials[k * size + f];
  }
  return partials;
}

}  // namespace GK_ISA
}  // namespace gatkernels
