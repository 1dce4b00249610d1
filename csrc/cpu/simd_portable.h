// Vectors of a fixed width as plain loops, for any processor; compilers turn them into SIMD.
#pragma once
#include <cmath>
#include <cstdint>

#include "../core/half.h"
#include "../core/philox.h"

namespace gatkernels {
namespace GK_ISA {

template <class A>
struct Vec {
  static constexpr int kWidth = 16 / int(sizeof(A));
  static constexpr int kTile = 4;  // vectors of a row held in registers at a time
  struct Index {
    int32_t lane[kWidth];
  };
  A lane[kWidth];

  static Vec set(A value) {
    Vec r;
    for (int k = 0; k < kWidth; ++k) r.lane[k] = value;
    return r;
  }
  static Vec load(const A* p) {
    Vec r;
    for (int k = 0; k < kWidth; ++k) r.lane[k] = p[k];
    return r;
  }
  static Vec load(const A* p, int n) {
    Vec r;
    for (int k = 0; k < kWidth; ++k) r.lane[k] = k < n ? p[k] : A(0);
    return r;
  }
  // 16-bit storage
  static Vec load(const BFloat16* p, int n) { return widen(p, n); }
  static Vec load(const Half* p, int n) { return widen(p, n); }
  void store(BFloat16* p, int n) const {
    for (int k = 0; k < n && k < kWidth; ++k) p[k] = to_bfloat16(float(lane[k]));
  }
  void store(Half* p, int n) const {
    for (int k = 0; k < n && k < kWidth; ++k) p[k] = to_half(float(lane[k]));
  }
  template <class H>
  static Vec widen(const H* p, int n) {
    Vec r;
    for (int k = 0; k < kWidth; ++k) r.lane[k] = k < n ? A(to_float(p[k])) : A(0);
    return r;
  }
  void store(A* p) const {
    for (int k = 0; k < kWidth; ++k) p[k] = lane[k];
  }
  void store(A* p, int n) const {
    for (int k = 0; k < n && k < kWidth; ++k) p[k] = lane[k];
  }
  // The first n lanes of a, the others of b
  static Vec merge(int n, Vec a, Vec b) {
    for (int k = 0; k < kWidth; ++k) a.lane[k] = k < n ? a.lane[k] : b.lane[k];
    return a;
  }
  // kHeads values each of kWidth / kHeads edges, side by side; `edges` of them are there (the
  // others repeat one), and `heads` of the values.
  template <int kHeads>
  static Vec load_edges(const A* base, int64_t stride, const int32_t* col, int edges, int heads) {
    Vec r;
    for (int e = 0; e < kWidth / kHeads; ++e) {
      const A* p = base + int64_t(col[e < edges ? e : 0]) * stride;
      for (int h = 0; h < kHeads; ++h) r.lane[e * kHeads + h] = h < heads ? p[h] : A(0);
    }
    return r;
  }
  // Combines the edges of a load_edges vector; every edge's lanes get the result.
  template <int kHeads, class Op>
  static Vec fold(Vec a, Op op) {
    for (int half = kWidth / 2; half >= kHeads; half /= 2) {
      Vec b;
      for (int k = 0; k < kWidth; ++k) b.lane[k] = a.lane[k ^ half];
      a = op(a, b);
    }
    return a;
  }
  // Every lane gets the sum of its group of `lanes` neighbours, a power of two.
  static Vec group_sum(Vec a, int lanes) {
    for (int half = 1; half < lanes; half *= 2) {
      Vec b;
      for (int k = 0; k < kWidth; ++k) b.lane[k] = a.lane[k] + a.lane[k ^ half];
      a = b;
    }
    return a;
  }
  // The first of every `lanes` neighbours, side by side; `count` of them.
  void store_firsts(A* p, int lanes, int count) const {
    for (int k = 0; k < count; ++k) p[k] = lane[k * lanes];
  }
  static Index index(const int32_t* p) {
    Index r;
    for (int k = 0; k < kWidth; ++k) r.lane[k] = p[k];
    return r;
  }
  // r[k] = p[index[k]], index[k] < kWidth
  static Vec expand(const A* p, Index index) {
    Vec r;
    for (int k = 0; k < kWidth; ++k) r.lane[k] = p[index.lane[k]];
    return r;
  }
  friend Vec operator+(Vec a, Vec b) {
    for (int k = 0; k < kWidth; ++k) a.lane[k] += b.lane[k];
    return a;
  }
  friend Vec operator-(Vec a, Vec b) {
    for (int k = 0; k < kWidth; ++k) a.lane[k] -= b.lane[k];
    return a;
  }
  friend Vec operator*(Vec a, Vec b) {
    for (int k = 0; k < kWidth; ++k) a.lane[k] *= b.lane[k];
    return a;
  }
  friend Vec operator/(Vec a, Vec b) {
    for (int k = 0; k < kWidth; ++k) a.lane[k] /= b.lane[k];
    return a;
  }
  static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
  // The larger; b where either is NaN.
  static Vec max(Vec a, Vec b) {
    for (int k = 0; k < kWidth; ++k) a.lane[k] = a.lane[k] > b.lane[k] ? a.lane[k] : b.lane[k];
    return a;
  }
  // s > 0 ? a : b
  static Vec if_positive(Vec s, Vec a, Vec b) {
    for (int k = 0; k < kWidth; ++k) a.lane[k] = s.lane[k] > A(0) ? a.lane[k] : b.lane[k];
    return a;
  }
  // w where the word passes the threshold, else 0
  static Vec keep(Vec w, const uint32_t* words, uint32_t threshold) {
    for (int k = 0; k < kWidth; ++k) w.lane[k] = words[k] >= threshold ? w.lane[k] : A(0);
    return w;
  }
  static Vec exp(Vec x) {
    for (int k = 0; k < kWidth; ++k) x.lane[k] = std::exp(x.lane[k]);
    return x;
  }
  static Vec expm1(Vec x) {
    for (int k = 0; k < kWidth; ++k) x.lane[k] = std::expm1(x.lane[k]);
    return x;
  }
};

// words[e][group][4] for n edges
static inline void philox_words(uint64_t seed, const int32_t* eid, int n, int groups, int stride,
                                uint32_t* words) {
  for (int e = 0; e < n; ++e) {
    for (int g = 0; g < groups; ++g) {
      philox(seed, uint64_t(uint32_t(eid[e])), uint64_t(g), words + int64_t(e) * stride + g * 4);
    }
  }
}

}  // namespace GK_ISA
}  // namespace gatkernels
