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

// The products of heads of kChannels, several to a vector, summed by head.
template <class A, int kChannels, class Product>
static inline void sum_small_heads(int64_t width, A* total, const Product& product) {
  using V = Vec<A>;
  constexpr int kWidth = V::kWidth, kPerVector = kWidth / kChannels;
  int64_t f = 0;
  for (; f + kWidth <= width; f += kWidth, total += kPerVector) {
    V::group_sum(product(f, kWidth), kChannels).store_firsts(total, kChannels, kPerVector);
  }
  if (f < width) {
    const int left = int(width - f);
    V::group_sum(product(f, left), kChannels).store_firsts(total, kChannels, left / kChannels);
  }
}

// The same for channels that do not divide a vector: products first, then head by head.
template <class A, class Product>
static inline void sum_odd_heads(const HeadMap<A>& map, A* total, const Product& product) {
  using V = Vec<A>;
  constexpr int kHeads = 16;
  alignas(64) A products[(kHeads + 1) * V::kWidth];
  for (int h = 0; h < map.heads; h += kHeads) {
    const int heads = map.heads - h < kHeads ? map.heads - h : kHeads;
    const int64_t begin = int64_t(h) * map.channels, count = int64_t(heads) * map.channels;
    for (int64_t f = 0; f < count; f += V::kWidth) {
      product(begin + f, int(count - f < V::kWidth ? count - f : V::kWidth)).store(products + f);
    }
    const A* part = products;
    for (int k = 0; k < heads; ++k) {
      A sum = A(0);
      for (int c = 0; c < map.channels; ++c) sum += *part++;
      total[h + k] = sum;
    }
  }
}

// Of one row, a head at a time or several of few channels.
template <class A, class Product>
static inline void sum_heads_apart(const HeadMap<A>& map, A* total, const Product& product) {
  using V = Vec<A>;
  const int channels = map.channels;
  if (channels < V::kWidth) {
    switch (channels) {
      case 1:
        return sum_small_heads<A, 1>(map.width, total, product);
      case 2:
        return sum_small_heads<A, (V::kWidth > 2 ? 2 : 1)>(map.width, total, product);
      case 4:
        return sum_small_heads<A, (V::kWidth > 4 ? 4 : 1)>(map.width, total, product);
      case 8:
        return sum_small_heads<A, (V::kWidth > 8 ? 8 : 1)>(map.width, total, product);
      default:
        return sum_odd_heads(map, total, product);
    }
  }
  int64_t f = 0;
  alignas(64) A sums[V::kWidth];
  for (int h = 0; h < map.heads; ++h) {
    V part = V::set(A(0));
    int left = channels;
    for (; left >= V::kWidth; left -= V::kWidth, f += V::kWidth) {
      part = part + product(f, V::kWidth);
    }
    if (left > 0) part = part + product(f, left);
    f += left;
    V::group_sum(part, V::kWidth).store(sums);
    total[h] = sums[0];
  }
}

// How heads are summed: one at a time, or those of a slot into a vector together, and for whole
// slots of heads of one or two vectors by loops without branches.
enum class SumLoops { kApart, kSlots, kVectors };

// For rows of T. These loops are most of the code, so there are few where they gain little: AVX-512
// has them for float32, and only what is summed `often` has all.
template <class T>
constexpr SumLoops sum_loops(bool often = true) {
  using A = std::conditional_t<std::is_same_v<T, double>, double, float>;
  if (std::is_same_v<T, float>) return often ? SumLoops::kVectors : SumLoops::kSlots;
  return Vec<A>::kMasks ? SumLoops::kApart : SumLoops::kSlots;
}

// Of rows by slots: a vector has the sums of kEdges rows, each over kVectors vectors of features,
// or over as many as there are, of any number of heads, where that is 0. Its parts are made in
// pairs, of a head and two rows, which share what else their products are made of, or of two heads
// of a row. Past the last row and head the last one's are written. Not inlined: all of them in one
// function take several times as long to compile.
template <int kEdges, int kVectors, class A, int kKinds, class Row, class Prefetch>
static __attribute__((noinline)) void sum_slots(const HeadMap<A>& map, int n,
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
template <int kEdges, SumLoops kLoops, class A, int kKinds, class Row, class Prefetch>
GK_INLINE void sum_by_slots(const HeadMap<A>& map, int n, A* const (&totals)[kKinds],
                            const Row& row, const Prefetch& prefetch) {
  constexpr int kWidth = Vec<A>::kWidth, kHeads = kWidth / kEdges;
  if constexpr (kHeads > 1) {
    if (map.heads <= kHeads / 2)
      return sum_by_slots<2 * kEdges, kLoops>(map, n, totals, row, prefetch);
  }
  if constexpr (kLoops == SumLoops::kVectors && kEdges <= 4 && kHeads > 1) {
    if (map.heads % kHeads == 0) {
      if (map.channels == kWidth) return sum_slots<kEdges, 1>(map, n, totals, row, prefetch);
      if (map.channels == 2 * kWidth) return sum_slots<kEdges, 2>(map, n, totals, row, prefetch);
    }
  }
  sum_slots<kEdges, 0>(map, n, totals, row, prefetch);
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

// totals[kind][e, h] = the sums over the channels of head h of the products of row e, [n, slots]
// each. row(e) gives a callable (feature, lanes) whose results are Kinds; before features
// of a row are read, prefetch(e, feature, count) asks for those of one to come. What is summed
// often has loops of its own for heads of one and two vectors.
template <SumLoops kLoops, class A, int kKinds, class Row, class Prefetch>
static inline void sum_heads(const HeadMap<A>& map, int n, A* const (&totals)[kKinds],
                             const Row& row, const Prefetch& prefetch) {
  const int channels = map.channels;
  if constexpr (Vec<A>::kWidth == 16) {
    if (channels == 8 && map.heads == 8) {
      return sum_half_vectors(map, n, totals, row, prefetch);
    }
  }
  if constexpr (kLoops != SumLoops::kApart) {
    if (channels >= Vec<A>::kWidth || (channels != 1 && channels != 2 && channels != 4)) {
      return sum_by_slots<1, kLoops>(map, n, totals, row, prefetch);
    }
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
