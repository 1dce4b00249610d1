// What every attention kernel does with rows of features: sum gathered rows with weights per head.
// Included once per instruction set.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../core/host_device.h"
#include "parallel.h"
#include "simd_math.h"

#define GK_INLINED __attribute__((always_inline))  // of lambdas

namespace gatkernels {
namespace GK_ISA {

constexpr int kBlock = 128;         // edges scored at a time
constexpr int kTile = 4;            // vectors of a row held in registers at a time
constexpr int kPrefetch = 16;       // edges ahead, rows of features
constexpr int kPrefetchMost = 256;  // bytes of a row, whose others the processor foresees
constexpr int64_t kNear = 1 << 20;  // bytes that a second cache has room for
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

// body(vectors, first feature) for each tile of a row; `vectors` is a constant, of which the last
// tile may have kLast.
template <class V, int kLast = kTile, class Body>
__attribute__((always_inline)) inline void each_tile(int64_t width, Body body) {
  for (int64_t f = 0; f < width;) {
    const int64_t left = (width - f + V::kWidth - 1) / V::kWidth;
    with_count<kLast>(left <= kLast ? left : kTile, [&](auto n) GK_INLINED {
      body(n, f);
      f += n * V::kWidth;
    });
  }
}

// body(flag) of a constant.
template <class Body>
__attribute__((always_inline)) inline void with_flag(bool flag, Body body) {
  flag ? body(std::true_type()) : body(std::false_type());
}

// A result without values may be null, which memset must not be given.
template <class T>
static inline void clear_values(T* values, int64_t count) {
  if (count > 0) std::memset(values, 0, size_t(count) * sizeof(T));
}

// Which head each lane of a row of H * C features belongs to.
template <class A>
struct HeadMap {
  int heads, channels;
  int64_t width;  // H * C
  bool uniform;   // no vector spans two heads
  int32_t* head;  // [lanes of whole vectors]; past the last feature its head. Null: out of memory

  explicit HeadMap(const Shape& shape)
      : heads(int(shape.heads)), channels(int(shape.channels)), width(shape.heads * channels) {
    constexpr int kWidth = Vec<A>::kWidth;
    uniform = heads == 1 || channels % kWidth == 0;
    const int64_t lanes = (width + kWidth - 1) / kWidth * kWidth;
    head = reinterpret_cast<int32_t*>(allocate(size_t(lanes) * sizeof(int32_t)));
    for (int64_t lane = 0; head && lane < lanes; ++lane) {
      head[lane] = int32_t((lane < width ? lane : width - 1) / channels);
    }
  }
  HeadMap(const HeadMap&) = delete;
  ~HeadMap() { release(reinterpret_cast<char*>(head)); }
};

// Rows to gather: row j starts at data + j * stride.
template <class T>
struct Gather {
  const T* data;
  int64_t stride;
  const int32_t* col_end;  // one past the last column, so that prefetching stays inside
  bool near;               // all rows, so that they need not be asked for

  Gather(const Matrix& m, const Edges& edges)
      : data(static_cast<const T*>(m.data)),
        stride(m.stride),
        col_end(edges.col + edges.rowptr[edges.rows]),
        near(m.rows * m.stride * int64_t(sizeof(T)) <= kNear) {}
  // Other rows, by the same edges.
  Gather(const T* data_, int64_t stride_, const Gather& by)
      : data(data_), stride(stride_), col_end(by.col_end), near(by.near) {}
};

// How many features of a row are asked for where several rows of an edge are.
template <class T>
static inline int64_t prefetched(int64_t width) {
  constexpr int64_t kMost = kPrefetchMost / int64_t(sizeof(T));
  return width < kMost ? width : kMost;
}

// Asks for features [feature, feature + count) of the row of an edge some way ahead of `col`.
// Inlined, as GCC takes a function that only prefetches for one without effect, and leaves out
// calls.
template <class T>
GK_INLINE void prefetch_row(const Gather<T>& from, int64_t feature, int64_t count,
                            const int32_t* col, int distance = kPrefetch) {
  if (from.near) return;
  const int32_t* ahead = col + distance < from.col_end ? col + distance : col;
  const T* row = from.data + int64_t(*ahead) * from.stride;
  const char* end = reinterpret_cast<const char*>(row + feature + count);
  for (const char* p = reinterpret_cast<const char*>(row + feature); p < end; p += 64) {
    __builtin_prefetch(p);
  }
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

// to = from, by way of the type of sums
template <class A, class From, class To>
static inline void store_row(const From* from, int64_t width, To* to) {
  using V = Vec<A>;
  for (int64_t f = 0; f < width; f += V::kWidth) {
    const int lanes = width - f < V::kWidth ? int(width - f) : V::kWidth;
    V::load(from + f, lanes).store(to + f, lanes);
  }
}

// How heads lie in a tile: all of it in one; one for every other vector or for every vector, which
// are common and have their values at fixed places; whole vectors in one each; lanes in so few that
// a vector holds all values, which is loaded once; or in more.
enum class HeadsOf { kTile, kPairs, kEach, kVector, kTogether, kLanes };

// Values of heads, for the vectors of a tile of kN.
template <class A, HeadsOf kHeads, int kN>
struct TileHeads {
  using V = Vec<A>;
  static constexpr bool kIndexed = kHeads == HeadsOf::kTogether || kHeads == HeadsOf::kLanes;
  int64_t first[kN];  // head of a vector's first lane, or of the tile's where all are together
  typename V::Index index[kN];

  TileHeads(const HeadMap<A>& map, int64_t feature) {
    unrolled<kN>([&](auto k) GK_INLINED {
      const int32_t* head = map.head + feature + k * V::kWidth;
      first[k] = kHeads == HeadsOf::kTogether ? map.head[feature] : *head;
      if (kIndexed) index[k] = V::index(head, int32_t(first[k]));
    });
  }
  // For vector k, of[head of each lane]
  template <int k>
  GK_INLINE V value(const A* of) const {
    if constexpr (kIndexed) return V::expand(of + first[k], index[k]);
    if constexpr (kHeads == HeadsOf::kTile) return V::set(of[first[0]]);
    if constexpr (kHeads == HeadsOf::kPairs) return V::set(of[first[0] + k / 2]);
    if constexpr (kHeads == HeadsOf::kEach) return V::set(of[first[0] + k]);
    if constexpr (kHeads == HeadsOf::kVector) return V::set(of[first[k]]);
  }
};
// For one vector from a feature on. What was just written one by one is best read so.
template <class A>
static inline Vec<A> expanded(const HeadMap<A>& map, int64_t feature, const A* of) {
  if (map.uniform) return Vec<A>::set(of[map.head[feature]]);
  return TileHeads<A, HeadsOf::kLanes, 1>(map, feature).template value<0>(of);
}

// body(how) of a constant HeadsOf for the tile of kN vectors from a feature on. Loads are what most
// loops over tiles wait for: values that are permuted out of one vector beat a broadcast for every
// vector, where registers are to `spare` for it.
template <int kN, bool kSpare = true, class A, class Body>
GK_INLINE void with_heads(const HeadMap<A>& map, int64_t feature, Body body) {
  using Of = HeadsOf;
  using V = Vec<A>;
  const int32_t first = map.head[feature], last = map.head[feature + kN * V::kWidth - 1];
  if (map.uniform && first == last) return body(std::integral_constant<Of, Of::kTile>());
  if constexpr (V::kPermutes) {
    if (last - first < V::kWidth && (kSpare || !map.uniform)) {
      return body(std::integral_constant<Of, Of::kTogether>());
    }
  }
  if constexpr (!V::kPermutes || !kSpare) {
    if (map.uniform) {
      if constexpr (kN == kTile) {
        if (map.channels == V::kWidth) return body(std::integral_constant<Of, Of::kEach>());
        if (map.channels == 2 * V::kWidth) return body(std::integral_constant<Of, Of::kPairs>());
      }
      return body(std::integral_constant<Of, Of::kVector>());
    }
  }
  body(std::integral_constant<Of, Of::kLanes>());
}

// sum[f] (+)= sum_e w[e * w_stride + head(f)] * row(col[e])[f], and sum_pos with w_pos, over one
// tile of kN vectors; `carry` adds to what is there. Then both are multiplied by their head's
// factor, unless that is null. Where sums are `padded`, a vector past their end may be written.
template <class A, int kN, bool kPair, HeadsOf kHeads, class T>
static inline void accumulate_tile(const HeadMap<A>& map, const Gather<T>& from, const int32_t* col,
                                   int n, const A* w, const A* w_pos, int w_stride, int64_t feature,
                                   bool carry, bool padded, A* sum, A* sum_pos, const A* factor) {
  using V = Vec<A>;
  constexpr int kWidth = V::kWidth;
  const int64_t left = map.width - feature;
  const bool ragged = left < kN * kWidth;
  const int tail = ragged ? int(left - (kN - 1) * kWidth) : kWidth;
  const TileHeads<A, kHeads, kN> heads(map, feature);
  V acc[kN], pos[kN];
  unrolled<kN>([&](auto k) GK_INLINED {
    const int64_t f = feature + k * kWidth;
    const int lanes = k == kN - 1 ? tail : kWidth;
    acc[k] = carry ? V::load(sum + f, lanes) : V::set(A(0));
    if (kPair) pos[k] = carry ? V::load(sum_pos + f, lanes) : V::set(A(0));
  });
  const T* base = from.data + feature;
  for (int e = 0; e < n; ++e) {
    const int32_t* ahead =
        col + e + kPrefetch < from.col_end ? col + e + kPrefetch : from.col_end - 1;
    const char* next = reinterpret_cast<const char*>(base + int64_t(*ahead) * from.stride);
    for (int line = 0; line < kN * kWidth * int(sizeof(T)); line += 64) {
      __builtin_prefetch(next + line);
    }
    const T* row = base + int64_t(col[e]) * from.stride;
    const A* we = w + int64_t(e) * w_stride;
    const A* we_pos = w_pos + int64_t(e) * w_stride;
    unrolled<kN>([&](auto k) GK_INLINED {
      const T* part = row + k * kWidth;
      const bool partial = k == kN - 1 && (V::kMasks || ragged);
      const V x = partial ? V::load(part, tail) : load_row<A>(part);
      acc[k] = V::fma(x, heads.template value<k>(we), acc[k]);
      if (kPair) pos[k] = V::fma(x, heads.template value<k>(we_pos), pos[k]);
    });
  }
  unrolled<kN>([&](auto k) GK_INLINED {
    const int64_t f = feature + k * kWidth;
    const int lanes = k == kN - 1 && !padded ? tail : kWidth;
    if (factor) {
      const V times = heads.template value<k>(factor);
      acc[k] = acc[k] * times;
      if (kPair) pos[k] = pos[k] * times;
    }
    acc[k].store(sum + f, lanes);
    if (kPair) pos[k].store(sum_pos + f, lanes);
  });
}

// All features of a row
template <class A, class T>
static void accumulate(const HeadMap<A>& map, const Gather<T>& from, const int32_t* col, int n,
                       const A* w, const A* w_pos, int w_stride, bool carry, A* sum, A* sum_pos,
                       const A* factor = nullptr, bool padded = false) {
  constexpr int kLast = std::is_same_v<T, float> ? Vec<A>::kLastTile : kTile;
  each_tile<Vec<A>, kLast>(map.width, [&](auto vectors, int64_t f) GK_INLINED {
    constexpr int kN = decltype(vectors)::value;
    with_flag(sum_pos != nullptr, [&](auto pair) GK_INLINED {
      with_heads<kN>(map, f, [&](auto heads) GK_INLINED {
        accumulate_tile<A, kN, decltype(pair)::value, decltype(heads)::value>(
            map, from, col, n, w, w_pos, w_stride, f, carry, padded, sum, sum_pos, factor);
      });
    });
  });
}

}  // namespace GK_ISA
}  // namespace gatkernels
