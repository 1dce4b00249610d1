// Sums over the channels of each head: dot products and logits, for one row or a block of edges.
#pragma once
#include <utility>

#include "rows.h"

namespace gatkernels {
namespace GK_ISA {

// Vectors of kKinds sums that are taken together.
template <class A, int kKinds>
struct Kinds {
  Vec<A> of[kKinds];

  static Kinds zero() {
    Kinds r;
    for (Vec<A>& v : r.of) v = Vec<A>::set(A(0));
    return r;
  }
  GK_INLINE void add(const Kinds& other) {
    unrolled<kKinds>([&](auto k) GK_INLINED { of[k] = of[k] + other.of[k]; });
  }
  GK_INLINE void store(A* const (&to)[kKinds], int64_t at) const {
    unrolled<kKinds>([&](auto k) GK_INLINED { of[k].store(to[k] + at); });
  }
};

// Lane k of the result: the sum of all lanes of part k, for kCount neighbouring lanes. Parts come
// in pairs, of which the first is kFirst: pair(k, a, b) makes parts 2k and 2k + 1.
template <class A, int kKinds, int kCount, int kFirst = 0, class Pair>
GK_INLINE Kinds<A, kKinds> sum_each(const Pair& pair) {
  Kinds<A, kKinds> a, b;
  if constexpr (kCount == 2) {
    pair(std::integral_constant<int, kFirst>(), a, b);
  } else {
    a = sum_each<A, kKinds, kCount / 2, kFirst>(pair);
    b = sum_each<A, kKinds, kCount / 2, kFirst + kCount / 4>(pair);
  }
  unrolled<kKinds>(
      [&](auto k) GK_INLINED { a.of[k] = Vec<A>::template add_halves<kCount>(a.of[k], b.of[k]); });
  return a;
}

// The products of heads whose channels divide a vector, summed by head.
template <class A, class Product>
static inline void sum_small_heads(const HeadMap<A>& map, A* total, const Product& product) {
  using V = Vec<A>;
  const int channels = map.channels;
  for (int64_t f = 0; f < map.width; f += V::kWidth) {
    const int lanes = map.width - f < V::kWidth ? int(map.width - f) : V::kWidth;
    const int heads = lanes / channels;
    V::group_sum(product(f, lanes), channels).store_firsts(total, channels, heads);
    total += heads;
  }
}

// The products of one row: heads of few channels several at a time, others one by one.
template <class A, class Product>
static inline void sum_heads_apart(const HeadMap<A>& map, A* total, const Product& product) {
  using V = Vec<A>;
  const int channels = map.channels;
  if (0 < channels && channels < V::kWidth && (channels & (channels - 1)) == 0) {
    return sum_small_heads(map, total, product);
  }
  int64_t f = 0;
  for (int h = 0; h < map.heads; ++h) {
    V part = V::set(A(0));
    int left = channels;
    for (; left >= V::kWidth; left -= V::kWidth, f += V::kWidth) {
      part = part + product(f, V::kWidth);
    }
    if (left > 0) part = part + product(f, left);
    f += left;
    V::group_sum(part, V::kWidth).store_firsts(total + h, V::kWidth, 1);
  }
}

// Lane by lane the sums of kWidth parts, of `edges` rows each of whose heads lie side by side.
template <class A>
static __attribute__((noinline)) Vec<A> sum_parts(const Vec<A>* part, int edges) {
  using V = Vec<A>;
  const V sums = sum_each<A, 1, V::kWidth>([&](auto of, auto& a, auto& b) GK_INLINED {
                   a.of[0] = part[2 * of];
                   b.of[0] = part[2 * of + 1];
                 }).of[0];
  switch (edges) {
    case 2:
      return V::template transposed<2>(sums);
    case 4:
      return V::template transposed<4>(sums);
    case 8:
      return V::template transposed<8>(sums);
    default:
      return sums;
  }
}

// Sums of any number of channels, by slots: a vector has those of a slot of heads, of kWidth / slot
// rows, in parts as above. Two rows are taken together, even where each fills a vector, as they
// share what else their products are made of. Past the last row and head the last one is taken.
template <class A, int kKinds, class Row, class Prefetch>
static __attribute__((noinline)) void sum_slots(const HeadMap<A>& map, int n,
                                                A* const (&totals)[kKinds], const Row& row,
                                                const Prefetch& prefetch) {
  using V = Vec<A>;
  constexpr int kWidth = V::kWidth;
  const int heads = slot<A>(map.heads), edges = kWidth / heads, channels = map.channels;
  const int rows = edges > 1 ? edges : 2, next = edges > 1 ? 1 : kWidth;  // the next row's part
  const int64_t stride = slots<A>(map.heads);
  V parts[kKinds][2 * kWidth];
  for (int e = 0; e < n; e += rows) {
    for (int k = e; k < n && k < e + rows; ++k) prefetch(k, 0, map.width);
    for (int h = 0; h < map.heads; h += heads) {
      for (int k = 0; k < rows; k += 2) {
        const int here = e + k < n ? e + k : n - 1, there = e + k + 1 < n ? e + k + 1 : n - 1;
        const auto first = row(here), second = row(there);
        for (int head = 0; head < heads; ++head) {
          int64_t f = int64_t(h + head < map.heads ? h + head : map.heads - 1) * channels;
          auto a = Kinds<A, kKinds>::zero(), b = a;
          const auto add = [&](int lanes) GK_INLINED {
            a.add(first(f, lanes));
            b.add(second(f, lanes));
            f += lanes;
          };
          int left = channels;
          for (; left >= kWidth; left -= kWidth) add(kWidth);
          if (left > 0) add(left);
          unrolled<kKinds>([&](auto kind) GK_INLINED {
            V* part = parts[kind] + head * edges + k;
            part[0] = a.of[kind];
            part[next] = b.of[kind];
          });
        }
      }
      unrolled<kKinds>([&](auto kind) GK_INLINED {
        A* to = totals[kind] + e * stride + h;
        sum_parts<A>(parts[kind], edges).store(to);
        if (edges == 1 && e + 1 < n) sum_parts<A>(parts[kind] + kWidth, edges).store(to + stride);
      });
    }
  }
}

// The same unrolled, for each number of heads in a slot: kEdges rows to a vector, each over
// kVectors vectors of features, or, where that is 0, over as many as there are. Parts are made in
// pairs, of a head and two rows, or of two heads of a row. A tenth faster, and several times the
// code. Not inlined: all of them in one function take several times as long to compile.
template <int kEdges, int kVectors, class A, int kKinds, class Row, class Prefetch>
static __attribute__((noinline)) void sum_unrolled(const HeadMap<A>& map, int n,
                                                   A* const (&totals)[kKinds], const Row& row,
                                                   const Prefetch& prefetch) {
  using V = Vec<A>;
  constexpr int kWidth = V::kWidth, kHeads = kWidth / kEdges;
  constexpr bool kAtOnce = kVectors > 0 || V::kMasks;  // whether whole rows are asked for
  const int channels = kVectors > 0 ? kVectors * kWidth : map.channels;
  const int64_t stride = slots<A>(map.heads);
  for (int e = 0; e < n; e += kEdges) {
    for (int k = e; kAtOnce && k < n && k < e + kEdges; ++k) prefetch(k, 0, map.width);
    for (int h = 0; h < map.heads; h += kHeads) {
      const auto part_of = [&](int k) GK_INLINED {
        const int edge = e + k % kEdges, head = h + k / kEdges;
        const bool there = kVectors > 0 || head < map.heads;
        return std::pair{edge < n ? edge : n - 1, there ? head : map.heads - 1};
      };
      const auto sums = sum_each<A, kKinds, kWidth>([&](auto of, auto& a, auto& b) GK_INLINED {
        const auto [edge_a, head_a] = part_of(2 * of);
        const auto [edge_b, head_b] = part_of(2 * of + 1);
        int64_t f = int64_t(head_a) * channels, g = int64_t(head_b) * channels;
        const auto first = row(edge_a), second = row(edge_b);
        if (!kAtOnce) {
          prefetch(edge_a, f, channels);
          prefetch(edge_b, g, channels);
        }
        const auto add = [&](int count) GK_INLINED {
          a.add(first(f, count));
          b.add(second(g, count));
        };
        if constexpr (kVectors > 0) {
          a = first(f, kWidth);
          b = second(g, kWidth);
          f += kWidth;
          g += kWidth;
          if (kVectors == 2) add(kWidth);
        } else {
          a = b = Kinds<A, kKinds>::zero();
          int left = channels;
          for (; left >= kWidth; left -= kWidth, f += kWidth, g += kWidth) add(kWidth);
          if (left > 0) add(left);
        }
      });
      unrolled<kKinds>([&](auto k) GK_INLINED {
        V::template transposed<kEdges>(sums.of[k]).store(totals[k] + e * stride + h);
      });
    }
  }
}
template <int kEdges, class A, int kKinds, class Row, class Prefetch>
GK_INLINE void sum_by_edges(const HeadMap<A>& map, int n, A* const (&totals)[kKinds],
                            const Row& row, const Prefetch& prefetch) {
  constexpr int kWidth = Vec<A>::kWidth, kHeads = kWidth / kEdges;
  if constexpr (kHeads > 1) {
    if (map.heads <= kHeads / 2) return sum_by_edges<2 * kEdges>(map, n, totals, row, prefetch);
  }
  if constexpr (kEdges <= 4 && kHeads > 1) {
    if (map.heads % kHeads == 0) {
      if (map.channels == kWidth) return sum_unrolled<kEdges, 1>(map, n, totals, row, prefetch);
      if (map.channels == 2 * kWidth) return sum_unrolled<kEdges, 2>(map, n, totals, row, prefetch);
    }
  }
  sum_unrolled<kEdges, 0>(map, n, totals, row, prefetch);
}

// The same for eight heads of half a vector of sixteen.
template <class A, int kKinds, class Row, class Prefetch>
GK_INLINE void sum_half_vectors(const HeadMap<A>& map, int n, A* const (&totals)[kKinds],
                                const Row& row, const Prefetch& prefetch) {
  using V = Vec<A>;
  // sums of heads 0 2 4 6, in each quarter of the first half, and of 1 3 5 7
  const auto quarters = [&](int e) GK_INLINED {
    prefetch(e, 0, map.width);
    const auto products = row(e);
    return sum_each<A, kKinds, 4>([&](auto of, auto& a, auto& b) GK_INLINED {
      a = products(2 * of * V::kWidth, V::kWidth);
      b = products((2 * of + 1) * V::kWidth, V::kWidth);
    });
  };
  for (int e = 0; e < n; e += 2) {
    const Kinds<A, kKinds> first = quarters(e), second = e + 1 < n ? quarters(e + 1) : first;
    unrolled<kKinds>([&](auto k) GK_INLINED {
      V::zipped(V::template add_halves<8>(first.of[k], second.of[k])).store(totals[k] + e * 8);
    });
  }
}

// Whether sums of rows of T are unrolled: what is summed `often`.
template <class T>
constexpr bool unrolls(bool often = true) {
  return often && std::is_same_v<T, float>;
}

// totals[kind][e, h] = the sums over the channels of head h of the products of row e, [n, slots]
// each. row(e) gives a callable (feature, lanes) whose results are Kinds; before features
// of a row are read, prefetch(e, feature, count) asks for those of one to come.
template <bool kUnrolled, class A, int kKinds, class Row, class Prefetch>
static inline void sum_heads(const HeadMap<A>& map, int n, A* const (&totals)[kKinds],
                             const Row& row, const Prefetch& prefetch) {
  constexpr int kWidth = Vec<A>::kWidth;
  const int channels = map.channels;
  if constexpr (kWidth == 16) {
    if (channels == 8 && map.heads == 8) {
      return sum_half_vectors(map, n, totals, row, prefetch);
    }
  }
  if (channels >= kWidth || (channels != 1 && channels != 2 && channels != 4)) {
    if constexpr (kUnrolled) return sum_by_edges<1>(map, n, totals, row, prefetch);
    return sum_slots(map, n, totals, row, prefetch);
  }
  const int64_t stride = slots<A>(map.heads);
  for (int e = 0; e < n; ++e) {
    prefetch(e, 0, map.width);
    const auto products = row(e);
    unrolled<kKinds>([&](auto k) GK_INLINED {
      sum_heads_apart(map, totals[k] + e * stride,
                      [&](int64_t f, int lanes) GK_INLINED { return products(f, lanes).of[k]; });
    });
  }
}

// dot[h] = sum_c a[h, c] * b[h, c], of one row
template <class A, class S, class T>
static inline void dot_heads(const HeadMap<A>& map, const S* a, const T* b, A* dot) {
  sum_heads_apart(map, dot, [&](int64_t f, int lanes) GK_INLINED {
    return load_row<A>(a + f, lanes) * load_row<A>(b + f, lanes);
  });
}

}  // namespace GK_ISA
}  // namespace gatkernels
