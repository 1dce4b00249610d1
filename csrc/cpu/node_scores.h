// Scores from features, and the gradients that come back through them.
#pragma once
#include "head_sums.h"
#include "heads.h"

namespace gatkernels {
namespace GK_ISA {

template <class T, class A>
static Status node_scores(const NodeScores& p) {
  const HeadMap<A> map(p.shape);
  if (map.head == nullptr) return Status::kOutOfMemory;
  const auto score = [&](int64_t i, const void* att, void* scores, A* dot) {
    if (scores == nullptr) return;
    const T* x = static_cast<const T*>(p.x.data) + i * p.x.stride;
    dot_heads(map, static_cast<const A*>(att), x, dot);
    std::memcpy(static_cast<A*>(scores) + i * map.heads, dot, size_t(map.heads) * sizeof(A));
  };
  return run_nodes<A>(p.rows, p.shape, map.width, [&](int64_t i, const Scratch<A>& t) {
    score(i, p.att_src, p.score_src, t.sum);
    score(i, p.att_dst, p.score_dst, t.sum);
  });
}

// How many parts the sums over all rows come in: one of each task, one of each long row.
static inline int64_t row_parts(const Edges& edges) {
  return task_count(edges.rowptr, edges.rows) + long_row_limit(edges.rowptr, edges.rows);
}

// Sums over all rows of one or two sides, [sides, width], in `count` parts that are added in their
// order. Each has lines of the cache to itself, as threads add to theirs row by row.
template <class A>
struct AttParts {
  int64_t count, sides, width;
  int64_t stride;  // of a side: whole lines, and so whole vectors
  A* data;         // null: out of memory

  AttParts(int64_t count_, int64_t sides_, int64_t width_)
      : count(count_),
        sides(sides_),
        width(width_),
        stride((width + kLine - 1) / kLine * kLine),
        data(reinterpret_cast<A*>(allocate(bytes()))) {
    if (data) std::memset(data, 0, bytes());
  }
  AttParts(const AttParts&) = delete;
  ~AttParts() { release(reinterpret_cast<char*>(data)); }

  A* part(int64_t k, int64_t side = 0) const { return data + (k * sides + side) * stride; }
  void sum(A* total) const {
    std::memset(total, 0, size_t(sides * width) * sizeof(A));
    for (int64_t k = 0; k < count; ++k) {
      for (int64_t side = 0; side < sides; ++side) {
        const A* from = part(k, side);
        for (int64_t f = 0; f < width; ++f) total[side * width + f] += from[f];
      }
    }
  }

 private:
  static constexpr int64_t kLine = 64 / int64_t(sizeof(A));
  size_t bytes() const { return size_t(count * sides * stride) * sizeof(A); }
};

// Gradients of x and att from those of scores that are NodeScores of x.
template <class T, class A>
struct AttGradient {
  using V = Vec<A>;
  const HeadMap<A>& map;
  const A* src;  // [H * C], or null
  const A* dst;
  const AttParts<A>& parts;

  // grad_x = row + grad_src src + grad_dst dst, and what x adds to a part of the gradient of att.
  void add(const T* x, const A* row, const A* grad_src, const A* grad_dst, T* grad_x,
           int64_t part) const {
    const int64_t width = map.width;
    // here, as a compiler must fear that stores of vectors change members
    const A *const att_src = src, *const att_dst = dst;
    A *const to_src = parts.part(part), *const to_dst = dst ? parts.part(part, 1) : nullptr;
    for (int64_t f = 0; f < width; f += V::kWidth) {
      const int lanes = width - f < V::kWidth ? int(width - f) : V::kWidth;
      const V feature = V::load(x + f, lanes);
      V total = row ? V::load(row + f, lanes) : V::set(A(0));
      const auto side = [&](const A* att, const A* grad, A* to) {
        const V score = expanded(map, f, grad);
        total = V::fma(score, V::load(att + f, lanes), total);
        V::fma(score, feature, V::load(to + f)).store(to + f);
      };
      side(att_src, grad_src, to_src);
      if (att_dst) side(att_dst, grad_dst, to_dst);
      total.store(grad_x + f, lanes);
    }
  }
};

}  // namespace GK_ISA
}  // namespace gatkernels
