// Vectors of 16 bytes in the compiler's own vector types (GCC and clang): SSE2 on x86, NEON on ARM,
// and whatever else a processor has.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/half.h"
#include "../core/philox.h"

namespace gatkernels {
namespace GK_ISA {

template <class A>
struct Vec {
  static constexpr int kWidth = 16 / int(sizeof(A));
  static constexpr bool kMasks = false;          // loads of some lanes are as fast as of all
  static constexpr bool kPermutes = false;       // expand is one instruction
  static constexpr bool kManyRegisters = false;  // 32, not 16
  static constexpr int kLastTile = 4;  // vectors of a row's last tile, when sums alone are in them
  using Int = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  typedef A Lanes __attribute__((vector_size(16)));
  typedef Int Ints __attribute__((vector_size(16)));
  struct Index {
    int32_t lane[kWidth];
  };
  Lanes v;

  static Vec set(A value) { return {value - Lanes{}}; }  // all lanes; -0 stays -0
  static Vec load(const A* p) {
    Vec r;
    std::memcpy(&r.v, p, sizeof(r.v));
    return r;
  }
  static Vec load(const A* p, int n) {
    if (n >= kWidth) return load(p);
    Vec r{};
    for (int k = 0; k < n; ++k) r.v[k] = p[k];
    return r;
  }
  // 16-bit storage
  static Vec load(const BFloat16* p, int n) {
    typedef uint16_t Narrow __attribute__((vector_size(8)));
    typedef uint32_t Wide __attribute__((vector_size(16)));
    Narrow bits{};
    if (n >= kWidth) {
      std::memcpy(&bits, p, sizeof(bits));
    } else {
      for (int k = 0; k < n; ++k) bits[k] = p[k].bits;
    }
    return {reinterpret_cast<Lanes>(__builtin_convertvector(bits, Wide) << 16)};
  }
  static Vec load(const Half* p, int n) {
    Vec r{};
    for (int k = 0; k < n && k < kWidth; ++k) r.v[k] = A(to_float(p[k]));
    return r;
  }
  void store(BFloat16* p, int n) const {
    for (int k = 0; k < n && k < kWidth; ++k) p[k] = to_bfloat16(float(v[k]));
  }
  void store(Half* p, int n) const {
    for (int k = 0; k < n && k < kWidth; ++k) p[k] = to_half(float(v[k]));
  }
  void store(A* p) const { std::memcpy(p, &v, sizeof(v)); }
  void store(A* p, int n) const {
    if (n >= kWidth) return store(p);
    for (int k = 0; k < n; ++k) p[k] = v[k];
  }
  // 0, 1, 2, ... < n
  static Ints first(int n) {
    if constexpr (kWidth == 4) {
      return Ints{0, 1, 2, 3} < Int(n);
    } else {
      return Ints{0, 1} < Int(n);
    }
  }
  // The first n lanes of a, the others of b
  static Vec merge(int n, Vec a, Vec b) { return {first(n) ? a.v : b.v}; }
  // kHeads values each of kWidth / kHeads edges, side by side; `edges` of them are there (the
  // others repeat one), and `heads` of the values.
  template <int kHeads>
  static Vec load_edges(const A* base, int64_t stride, const int32_t* col, int edges, int heads) {
    if constexpr (kHeads == kWidth) {
      return load(base + int64_t(col[0]) * stride, heads);
    } else {
      A lane[kWidth];
      for (int e = 0; e < kWidth / kHeads; ++e) {
        const A* p = base + int64_t(col[e < edges ? e : 0]) * stride;
        std::memcpy(lane + e * kHeads, p, kHeads * sizeof(A));  // kHeads < kWidth: all are there
      }
      return load(lane);
    }
  }
  // Four such vectors of one value each: the k-th has those at base + k. (Where all four of an edge
  // lie in one vector, it is loaded and they are transposed.)
  static void load_fours(const A* base, int64_t stride, const int32_t* col, int edges,
                         Vec (&four)[4]) {
    for (int k = 0; k < 4; ++k) four[k] = load_edges<1>(base + k, stride, col, edges, 1);
  }
  // The values p[0 : heads] for every edge of a load_edges vector.
  template <int kHeads>
  static Vec repeat(const A* p, int heads) {
    const int32_t first = 0;
    return load_edges<kHeads>(p, 0, &first, 1, heads);
  }
  // Lanes of a, and of b after those
  template <int... kLanes>
  static Vec pick(Vec a, Vec b) {
#if defined(__clang__)
    return {__builtin_shufflevector(a.v, b.v, kLanes...)};
#else
    return {__builtin_shuffle(a.v, b.v, Ints{kLanes...})};
#endif
  }
  // Lane k gets lane k ^ kHalf.
  template <int kHalf>
  static Vec exchange(Vec a) {
    if constexpr (kWidth == 2) {
      return pick<1, 0>(a, a);
    } else if constexpr (kHalf == 1) {
      return pick<1, 0, 3, 2>(a, a);
    } else {
      return pick<2, 3, 0, 1>(a, a);
    }
  }
  // Combines the edges of a load_edges vector; every edge's lanes get the result.
  template <int kHeads, class Op>
  static Vec fold(Vec a, Op op) {
    if constexpr (kWidth == 4 && kHeads <= 2) a = op(a, exchange<2>(a));
    if constexpr (kHeads <= 1) a = op(a, exchange<1>(a));
    return a;
  }
  // Every lane gets the sum of its group of `lanes` neighbours, a power of two.
  static Vec group_sum(Vec a, int lanes) {
    if (lanes > 1) a = a + exchange<1>(a);
    if (lanes > 2) a = a + exchange<2>(a);
    return a;
  }
  // Where a and b hold kCount / 2 sums each, in as many parts as there is room for: those of a,
  // then those of b, in half as many parts. In every lane the parts are added in the same order.
  template <int kCount>
  static Vec add_halves(Vec a, Vec b) {
    if constexpr (kWidth == 2) {
      return pick<0, 2>(a, b) + pick<1, 3>(a, b);
    } else if constexpr (kCount == 2) {
      return pick<0, 4, 1, 5>(a, b) + pick<2, 6, 3, 7>(a, b);
    } else {
      return pick<0, 1, 4, 5>(a, b) + pick<2, 3, 6, 7>(a, b);
    }
  }
  // Lanes taken for rows of kColumns, by columns
  template <int kColumns>
  static Vec transposed(Vec a) {
    if constexpr (kWidth == 4 && kColumns == 2) return pick<0, 2, 1, 3>(a, a);
    return a;
  }
  // The first of every `lanes` neighbours, side by side; `count` of them.
  void store_firsts(A* p, int lanes, int count) const {
    for (int k = 0; k < count; ++k) p[k] = v[k * lanes];
  }
  static Index index(const int32_t* p, int32_t from) {
    Index r;
    for (int k = 0; k < kWidth; ++k) r.lane[k] = p[k] - from;
    return r;
  }
  // r[k] = p[index[k]], index[k] < kWidth
  static Vec expand(const A* p, Index index) {
    if constexpr (kWidth == 4) {
      return {Lanes{p[index.lane[0]], p[index.lane[1]], p[index.lane[2]], p[index.lane[3]]}};
    } else {
      return {Lanes{p[index.lane[0]], p[index.lane[1]]}};
    }
  }
  friend Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
  friend Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
  // The larger; b where either is NaN.
  static Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
  // s > 0 ? a : b
  static Vec if_positive(Vec s, Vec a, Vec b) { return {s.v > A(0) ? a.v : b.v}; }
  // s > 0 ? a : 0
  static Vec where_positive(Vec s, Vec a) {
    return {reinterpret_cast<Lanes>((s.v > A(0)) & reinterpret_cast<Ints>(a.v))};
  }
  // s < 0 ? a : b, or either where s is -0
  static Vec if_negative(Vec s, Vec a, Vec b) { return {s.v < A(0) ? a.v : b.v}; }
  // w where the word passes the threshold, else 0
  static Vec keep(Vec w, const uint32_t* words, uint32_t threshold) {
    Ints passes;
    for (int k = 0; k < kWidth; ++k) passes[k] = words[k] >= threshold ? -1 : 0;
    return {reinterpret_cast<Lanes>(reinterpret_cast<Ints>(w.v) & passes)};
  }
  // Of the last bits of x the exponent of the result: what is 1 where they are 127 (double: 1023)
  static Vec as_exponent(Vec x) {
    return {reinterpret_cast<Lanes>(reinterpret_cast<Ints>(x.v) << (kWidth == 4 ? 23 : 52))};
  }
};

// words[e * stride + group * 4 ...] of so many groups from `first` on, for n edges
static inline void philox_words(uint64_t seed, const int32_t* ids, int n, int first, int groups,
                                int stride, uint32_t* words) {
  for (int e = 0; e < n; ++e) {
    for (int g = 0; g < groups; ++g) {
      philox(seed, uint64_t(uint32_t(ids[e])), uint64_t(first + g),
             words + int64_t(e) * stride + g * 4);
    }
  }
}

}  // namespace GK_ISA
}  // namespace gatkernels
