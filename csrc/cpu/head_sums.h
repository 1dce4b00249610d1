// Sums over the channels of each head: dot products and logits, for one row or a block of edges.
#pragma once
#include <algorithm>

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

// Lane k of the result: the sum of all lanes of part(kFirst + k), for kCount neighbouring lanes.
template <class A, int kKinds, int kCount, int kFirst = 0, class Part>
GK_INLINE Kinds<A, kKinds> sum_each(const Part& part) {
  if constexpr (kCount == 1) {
    return part(std::integral_constant<int, kFirst>());
  } else {
    Kinds<A, kKinds> a = sum_each<A, kKinds, kCount / 2, kFirst>(part);
    const Kinds<A, kKinds> b = sum_each<A, kKinds, kCount / 2, kFirst + kCount / 2>(part);
    unrolled<kKinds>([&](auto k) GK_INLINED {
      a.of[k] = Vec<A>::template add_halves<kCount>(a.of[k], b.of[k]);
    });
    return a;
  }
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

// Whether the heads of a slot are summed into a vector together.
template <class A>
inline bool sums_slots(int channels) {
  if (!Vec<A>::kAddsHalves) return false;
  return channels >= Vec<A>::kWidth || (channels != 1 && channels != 2 && channels != 4);
}

// Of n rows, kTogether of which share what else their products are made of; row(e) gives products.
// Whole vectors of slots are written, past the last edge, too.
template <int kTogether, class A, int kKinds, class Row, class Prefetch>
GK_INLINE void sum_slots(const HeadMap<A>& map, int n, A* const (&totals)[kKinds], const Row& row,
                         const Prefetch& prefetch) {
  using V = Vec<A>;
  using Sums = Kinds<A, kKinds>;
  constexpr int kWidth = V::kWidth;
  const int lanes = slot<A>(map.heads), stride = int(slots<A>(map.heads));
  const int channels = map.channels;
  const int group = kTogether * lanes < kWidth ? kWidth / lanes : kTogether;
  V parts[kKinds][kTogether * kWidth];  // by themselves, as copies of structs go through memory
  for (int e = 0; e < n; e += group) {
    const int edges = n - e < group ? n - e : group;
    for (int h = 0; h < map.heads; h += lanes) {
      const int heads = map.heads - h < lanes ? map.heads - h : lanes;
      if (edges < group || heads < lanes) {
        for (auto& of_kind : parts) std::fill(of_kind, of_kind + kTogether * kWidth, V::set(A(0)));
      }
      for (int k = 0; k < edges; k += kTogether) {
        const auto first = row(e + k), second = row(e + (k + 1 < edges ? k + 1 : k));
        for (int j = 0; j < heads; ++j) {
          Sums a = Sums::zero(), b = a;
          int64_t f = int64_t(h + j) * channels;
          for (int m = 0; m < kTogether && k + m < edges; ++m) prefetch(e + k + m, f, channels);
          const auto add = [&](int count) GK_INLINED {
            a.add(first(f, count));
            if (kTogether > 1) b.add(second(f, count));
          };
          int left = channels;
#pragma GCC unroll 2
          for (; left >= kWidth; left -= kWidth, f += kWidth) add(kWidth);
          if (left > 0) add(left);
          for (int kind = 0; kind < kKinds; ++kind) {
            parts[kind][k * lanes + j] = a.of[kind];
            if (kTogether > 1) parts[kind][(k + 1) * lanes + j] = b.of[kind];
          }
        }
      }
      for (int k = 0; k < edges; k += kWidth / lanes) {
        for (int kind = 0; kind < kKinds; ++kind) {
          const V* from = parts[kind] + k * lanes;
          const auto sum = sum_each<A, 1, kWidth>(
              [from](auto of) GK_INLINED { return Kinds<A, 1>{{from[of]}}; });
          sum.of[0].store(totals[kind] + (e + k) * stride + h);
        }
      }
    }
  }
}

// The same where every head is a vector, and heads fill whole slots.
template <class A, int kKinds, class Row, class Prefetch>
GK_INLINE void sum_vectors(const HeadMap<A>& map, int n, A* const (&totals)[kKinds], const Row& row,
                           const Prefetch& prefetch) {
  constexpr int kWidth = Vec<A>::kWidth;
  for (int e = 0; e < n; ++e) {
    prefetch(e, 0, map.width);
    const auto products = row(e);
    for (int h = 0; h < map.heads; h += kWidth) {
      const auto sums = sum_each<A, kKinds, kWidth>(
          [&](auto of) GK_INLINED { return products(int64_t(h + of) * kWidth, kWidth); });
      sums.store(totals, e * map.heads + h);
    }
  }
}

// totals[kind][e, h] = the sums over the channels of head h of the products of row e, [n, slots]
// each. row(e) gives a callable (feature, lanes) whose results are Kinds; before features
// of a row are read, prefetch(e, feature, count) asks for those of one to come.
template <int kTogether, class A, int kKinds, class Row, class Prefetch>
static inline void sum_heads(const HeadMap<A>& map, int n, A* const (&totals)[kKinds],
                             const Row& row, const Prefetch& prefetch) {
  constexpr int kWidth = Vec<A>::kWidth;
  if constexpr (Vec<A>::kAddsHalves) {
    if (map.channels == kWidth && map.heads % kWidth == 0) {
      return sum_vectors(map, n, totals, row, prefetch);
    }
    if (sums_slots<A>(map.channels)) {
      return sum_slots<kTogether>(map, n, totals, row, prefetch);
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

// dot[h] = sum_c a[h, c] * b[h, c]; perhaps whole slots are written
template <class A, class S, class T>
static inline void dot_heads(const HeadMap<A>& map, const S* a, const T* b, A* dot) {
  A* const totals[] = {dot};
  sum_heads<1>(
      map, 1, totals,
      [&](int) GK_INLINED {
        return [&](int64_t f, int lanes) GK_INLINED {
          return Kinds<A, 1>{{load_row<A>(a + f, lanes) * load_row<A>(b + f, lanes)}};
        };
      },
      [](int, int64_t, int64_t) {});
}

}  // namespace GK_ISA
}  // namespace gatkernels
