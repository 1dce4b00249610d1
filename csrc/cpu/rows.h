// What every attention kernel does with rows of features: sum gathered rows with weights per head,
// and dot products per head. Included once per instruction set.
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>

#include "parallel.h"
#include "simd_math.h"

namespace gatkernels {
namespace GK_ISA {

constexpr int kBlock = 128;         // edges scored at a time
constexpr int kTile = 4;            // vectors of a row held in registers at a time
constexpr int kPrefetch = 16;       // edges ahead, rows of features
constexpr int kScorePrefetch = 48;  // edges ahead, scores

// Heads side by side in a vector: kHeads of them, times kWidth / kHeads edges.
template <class A>
constexpr int slot(int64_t heads) {
  int lanes = 1;
  while (lanes < heads && lanes < Vec<A>::kWidth) lanes *= 2;
  return lanes;
}
// Values per edge in the scratch arrays: heads rounded up to whole slots.
template <class A>
constexpr int64_t slots(int64_t heads) {
  const int64_t lanes = slot<A>(heads);
  return (heads + lanes - 1) / lanes * lanes;
}

// body(0), ..., body(kN - 1) of constants, so that arrays they index stay in registers.
template <class Body, int... k>
__attribute__((always_inline)) inline void unrolled(std::integer_sequence<int, k...>, Body body) {
  (body(std::integral_constant<int, k>()), ...);
}
template <int kN, class Body>
__attribute__((always_inline)) inline void unrolled(Body body) {
  unrolled(std::make_integer_sequence<int, kN>(), body);
}

// body(n) of a constant, which is kMost where there are more.
template <int kMost, class Body>
__attribute__((always_inline)) inline void with_count(int64_t n, Body body) {
  if constexpr (kMost > 1) {
    if (n < kMost) return with_count<kMost - 1>(n, body);
  }
  body(std::integral_constant<int, kMost>());
}

// body(vectors, first feature) for each tile of a row; `vectors` is a constant.
template <class V, class Body>
__attribute__((always_inline)) inline void each_tile(int64_t width, Body body) {
  for (int64_t f = 0; f < width; f += kTile * V::kWidth) {
    const int64_t left = (width - f + V::kWidth - 1) / V::kWidth;
    with_count<kTile>(left, [&](auto n) __attribute__((always_inline)) { body(n, f); });
  }
}

// body(flag) of a constant.
template <class Body>
__attribute__((always_inline)) inline void with_flag(bool flag, Body body) {
  flag ? body(std::true_type()) : body(std::false_type());
}

// Which head each lane of a row of H * C features belongs to.
template <class A>
struct HeadMap {
  int heads, channels;
  int64_t width;    // H * C
  bool uniform;     // no vector spans two heads
  int32_t* first;   // [vectors] first head of a vector; null where there is no memory left
  int32_t* offset;  // [vectors, kWidth] head of each lane, less the first

  static int64_t vectors(int64_t width) { return (width + Vec<A>::kWidth - 1) / Vec<A>::kWidth; }
  explicit HeadMap(const Shape& shape)
      : heads(int(shape.heads)), channels(int(shape.channels)), width(shape.heads * channels) {
    constexpr int kWidth = Vec<A>::kWidth;
    uniform = heads == 1 || channels % kWidth == 0;
    const size_t size = size_t(vectors(width)) * (1 + kWidth);
    first = reinterpret_cast<int32_t*>(allocate(size * sizeof(int32_t)));
    if (first == nullptr) return;
    offset = first + vectors(width);
    for (int64_t v = 0; v < vectors(width); ++v) {
      first[v] = int32_t(v * kWidth / channels);
      for (int k = 0; k < kWidth; ++k) {
        const int64_t lane = v * kWidth + k;
        offset[v * kWidth + k] = lane < width ? int32_t(lane / channels) - first[v] : 0;
      }
    }
  }
  HeadMap(const HeadMap&) = delete;
  ~HeadMap() { release(reinterpret_cast<char*>(first)); }
};

// Rows to gather: row j starts at data + j * stride.
template <class T>
struct Gather {
  const T* data;
  int64_t stride;
  const int32_t* col_end;  // one past the last column, so that prefetching stays inside

  Gather(const Matrix& m, const Edges& edges)
      : data(static_cast<const T*>(m.data)),
        stride(m.stride),
        col_end(edges.col + edges.rowptr[edges.rows]) {}
};

// Asks for the row of an edge some way ahead of `col`. Always inlined, as GCC drops calls of
// functions that do nothing but prefetch.
template <class T>
__attribute__((always_inline)) inline void prefetch_row(const Gather<T>& from, int64_t width,
                                                        const int32_t* col) {
  const int32_t* ahead = col + kPrefetch < from.col_end ? col + kPrefetch : col;
  const char* next = reinterpret_cast<const char*>(from.data + int64_t(*ahead) * from.stride);
  const int64_t bytes = width * int64_t(sizeof(T));
  for (int64_t line = 0; line < bytes && line < 2048; line += 64) __builtin_prefetch(next + line);
}

// A whole vector of a row, whatever it is stored as.
template <class A, class T>
static inline Vec<A> load_row(const T* p) {
  if constexpr (std::is_same_v<A, T>) {
    return Vec<A>::load(p);
  } else {
    return Vec<A>::load(p, Vec<A>::kWidth);
  }
}

// The same, or its first lanes.
template <class A, class T>
__attribute__((always_inline)) inline Vec<A> load_row(const T* p, int lanes) {
  return lanes == Vec<A>::kWidth ? load_row<A>(p) : Vec<A>::load(p, lanes);
}

// sum[f] (+)= sum_e w[e * w_stride + head(f)] * row(col[e])[f], and sum_pos with w_pos, over one
// tile of kN vectors; `carry` adds to what is there.
template <class A, int kN, bool kPair, bool kUniform, class T>
static inline void accumulate_tile(const HeadMap<A>& map, const Gather<T>& from, const int32_t* col,
                                   int n, const A* w, const A* w_pos, int w_stride, int64_t feature,
                                   bool carry, A* sum, A* sum_pos) {
  using V = Vec<A>;
  constexpr int kWidth = V::kWidth;
  const int64_t vector = feature / kWidth;
  const int64_t left = map.width - feature;
  const bool ragged = left < kN * kWidth;
  const int tail = ragged ? int(left - (kN - 1) * kWidth) : kWidth;
  V acc[kN], pos[kN];
  typename V::Index index[kN];
  int32_t first[kN];
#pragma GCC unroll 8
  for (int k = 0; k < kN; ++k) {
    const int64_t f = feature + k * kWidth;
    const int lanes = k == kN - 1 ? tail : kWidth;
    acc[k] = carry ? V::load(sum + f, lanes) : V::set(A(0));
    if (kPair) pos[k] = carry ? V::load(sum_pos + f, lanes) : V::set(A(0));
    first[k] = map.first[vector + k];
    if (!kUniform) index[k] = V::index(map.offset + (vector + k) * kWidth);
  }
  const T* base = from.data + feature;
  const int32_t* last = from.col_end - 1;
  for (int e = 0; e < n; ++e) {
    const int32_t* ahead = col + e + kPrefetch < last ? col + e + kPrefetch : last;
    const char* next = reinterpret_cast<const char*>(base + int64_t(*ahead) * from.stride);
    for (int line = 0; line < kN * kWidth * int(sizeof(T)); line += 64) {
      __builtin_prefetch(next + line);
    }
    const T* row = base + int64_t(col[e]) * from.stride;
    const A* we = w + int64_t(e) * w_stride;
    const A* we_pos = w_pos + int64_t(e) * w_stride;
#pragma GCC unroll 8
    for (int k = 0; k < kN; ++k) {
      const T* part = row + k * kWidth;
      const bool partial = k == kN - 1 && (V::kMasks || ragged);
      const V x = partial ? V::load(part, tail) : load_row<A>(part);
      if (kUniform) {
        acc[k] = V::fma(x, V::set(we[first[k]]), acc[k]);
        if (kPair) pos[k] = V::fma(x, V::set(we_pos[first[k]]), pos[k]);
      } else {
        acc[k] = V::fma(x, V::expand(we + first[k], index[k]), acc[k]);
        if (kPair) pos[k] = V::fma(x, V::expand(we_pos + first[k], index[k]), pos[k]);
      }
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < kN; ++k) {
    const int64_t f = feature + k * kWidth;
    const int lanes = k == kN - 1 ? tail : kWidth;
    acc[k].store(sum + f, lanes);
    if (kPair) pos[k].store(sum_pos + f, lanes);
  }
}

// All features of a row
template <class A, class T>
static void accumulate(const HeadMap<A>& map, const Gather<T>& from, const int32_t* col, int n,
                       const A* w, const A* w_pos, int w_stride, bool carry, A* sum, A* sum_pos) {
  each_tile<Vec<A>>(map.width, [&](auto vectors, int64_t f) {
    with_flag(sum_pos != nullptr, [&](auto pair) __attribute__((always_inline)) {
      with_flag(map.uniform, [&](auto uniform) __attribute__((always_inline)) {
        accumulate_tile<A, decltype(vectors)::value, decltype(pair)::value,
                        decltype(uniform)::value>(map, from, col, n, w, w_pos, w_stride, f, carry,
                                                  sum, sum_pos);
      });
    });
  });
}

// The products of heads of kChannels, several to a vector, summed by head.
template <class A, int kChannels, class Product>
static inline void sum_small_heads(int64_t width, A* total, Product product) {
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
static inline void sum_odd_heads(const HeadMap<A>& map, A* total, Product product) {
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

// total[h] = sum_c of the products that `product(feature, lanes)` gives as vectors
template <class A, class Product>
static inline void sum_heads(const HeadMap<A>& map, A* total, Product product) {
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
  const auto head = [&]() __attribute__((always_inline)) {
    V part = V::set(A(0));
    int left = channels;
    for (; left >= V::kWidth; left -= V::kWidth, f += V::kWidth)
      part = part + product(f, V::kWidth);
    if (left > 0) part = part + product(f, left);
    f += left;
    return part;
  };
  int h = 0;
  if constexpr (V::kSumsEach) {  // a vector of heads together
    for (; map.heads - h > 1; h += V::kWidth) {
      const int heads = map.heads - h < V::kWidth ? map.heads - h : V::kWidth;
      V parts[V::kWidth];
      if (heads == V::kWidth && channels == V::kWidth) {
#pragma GCC unroll 8
        for (int k = 0; k < V::kWidth; ++k, f += V::kWidth) parts[k] = product(f, V::kWidth);
      } else {
        for (int k = 0; k < V::kWidth; ++k) parts[k] = k < heads ? head() : V::set(A(0));
      }
      V::sum_each(parts).store(total + h, heads);
    }
  }
  alignas(64) A sums[V::kWidth];
  for (; h < map.heads; ++h) {
    V::group_sum(head(), V::kWidth).store(sums);
    total[h] = sums[0];
  }
}

// dot[h] = sum_c a[h, c] * b[h, c]
template <class A, class S, class T>
static inline void dot_heads(const HeadMap<A>& map, const S* a, const T* b, A* dot) {
  using V = Vec<A>;
  sum_heads(map, dot, [&](int64_t f, int lanes) __attribute__((always_inline)) {
    if (lanes == V::kWidth) return load_row<A>(a + f) * load_row<A>(b + f);
    return V::load(a + f, lanes) * V::load(b + f, lanes);
  });
}

}  // namespace GK_ISA
}  // namespace gatkernels
