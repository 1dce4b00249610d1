// Vectors of AVX2 with FMA. simd_portable.h says what each function does.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "../core/half.h"
#include "../core/philox.h"

namespace gatkernels {
namespace GK_ISA {

alignas(64) static const int32_t kLaneMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                  0,  0,  0,  0,  0,  0,  0,  0};

template <class A>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int kWidth = 8;
  static constexpr bool kMasks = false;          // loads of some lanes are as fast as of all
  static constexpr bool kPermutes = true;        // expand is one instruction
  static constexpr bool kManyRegisters = false;  // 32, not 16
  static constexpr int kLastTile = 6;  // vectors of a row's last tile, when sums alone are in them
  using Index = __m256i;
  __m256 v;

  static Vec set(float value) { return {_mm256_set1_ps(value)}; }
  static __m256i first(int n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLaneMask + 8 - n));
  }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const float* p, int n) { return {_mm256_maskload_ps(p, first(n))}; }
  static __m128i load16(const void* p, int n) {
    if (n == kWidth) return _mm_loadu_si128(static_cast<const __m128i*>(p));
    alignas(16) uint16_t lane[kWidth] = {0};
    for (int k = 0; k < n; ++k) lane[k] = static_cast<const uint16_t*>(p)[k];
    return _mm_load_si128(reinterpret_cast<const __m128i*>(lane));
  }
  static void store16(__m128i bits, void* p, int n) {
    if (n == kWidth) return _mm_storeu_si128(static_cast<__m128i*>(p), bits);
    alignas(16) uint16_t lane[kWidth];
    _mm_store_si128(reinterpret_cast<__m128i*>(lane), bits);
    for (int k = 0; k < n; ++k) static_cast<uint16_t*>(p)[k] = lane[k];
  }
  static Vec load(const BFloat16* p, int n) {
    const __m256i wide = _mm256_cvtepu16_epi32(load16(p, n));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
  }
  static Vec load(const Half* p, int n) { return {_mm256_cvtph_ps(load16(p, n))}; }
  void store(BFloat16* p, int n) const {  // to nearest, ties to even
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i kept = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    store16(_mm_packus_epi32(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1)), p,
            n);
  }
  void store(Half* p, int n) const {
    store16(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), p, n);
  }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  // in pieces: AMD's masked stores take dozens of cycles
  void store(float* p, int n) const {
    if (n >= kWidth) return store(p);
    __m128 part = _mm256_castps256_ps128(v);
    if (n & 4) {
      _mm_storeu_ps(p, part);
      part = _mm256_extractf128_ps(v, 1);
      p += 4;
    }
    if (n & 2) {
      _mm_storel_pi(reinterpret_cast<__m64*>(p), part);
      part = _mm_movehl_ps(part, part);
      p += 2;
    }
    if (n & 1) _mm_store_ss(p, part);
  }
  static Vec merge(int n, Vec a, Vec b) {
    return {_mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(first(n < kWidth ? n : kWidth)))};
  }
  template <int kHeads>
  static Vec load_edges(const float* base, int64_t stride, const int32_t* col, int edges,
                        int heads) {
    const auto at = [&](int k) { return base + int64_t(col[k < edges ? k : 0]) * stride; };
    if constexpr (kHeads == 8) {
      return load(at(0), heads);
    } else if constexpr (kHeads == 4) {
      const __m128i m = _mm256_castsi256_si128(first(heads));
      return {_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_maskload_ps(at(0), m)),
                                   _mm_maskload_ps(at(1), m), 1)};
    } else if constexpr (kHeads == 2) {
      const auto value = [&](int k) {
        double pair;
        __builtin_memcpy(&pair, at(k), sizeof(pair));
        return pair;
      };
      return {_mm256_castpd_ps(_mm256_setr_pd(value(0), value(1), value(2), value(3)))};
    } else {
      return {_mm256_setr_ps(*at(0), *at(1), *at(2), *at(3), *at(4), *at(5), *at(6), *at(7))};
    }
  }
  static void load_fours(const float* base, int64_t stride, const int32_t* col, int edges,
                         Vec (&four)[4]) {
    const auto at = [&](int k) { return base + int64_t(col[k < edges ? k : 0]) * stride; };
    const auto pair = [&](int k) {  // of edges k and k + 4
      const __m256 first = _mm256_castps128_ps256(_mm_loadu_ps(at(k)));
      return _mm256_insertf128_ps(first, _mm_loadu_ps(at(k + 4)), 1);
    };
    const __m256 a = pair(0), b = pair(1), c = pair(2), d = pair(3);
    const __m256 ab = _mm256_unpacklo_ps(a, b), cd = _mm256_unpacklo_ps(c, d);
    four[0].v = _mm256_shuffle_ps(ab, cd, 0x44);
    four[1].v = _mm256_shuffle_ps(ab, cd, 0xEE);
    const __m256 ab_high = _mm256_unpackhi_ps(a, b), cd_high = _mm256_unpackhi_ps(c, d);
    four[2].v = _mm256_shuffle_ps(ab_high, cd_high, 0x44);
    four[3].v = _mm256_shuffle_ps(ab_high, cd_high, 0xEE);
  }
  template <int kHeads>
  static Vec repeat(const float* p, int heads) {
    if constexpr (kHeads == 8) {
      return load(p, heads);
    } else if constexpr (kHeads == 4) {
      const __m128 four = _mm_maskload_ps(p, _mm256_castsi256_si128(first(heads)));
      return {_mm256_insertf128_ps(_mm256_castps128_ps256(four), four, 1)};
    } else if constexpr (kHeads == 2) {
      double pair;
      __builtin_memcpy(&pair, p, sizeof(pair));
      return {_mm256_castpd_ps(_mm256_set1_pd(pair))};
    } else {
      return set(*p);
    }
  }
  template <int kHeads, class Op>
  static Vec fold(Vec a, Op op) {
    if constexpr (kHeads <= 4) a = op(a, Vec{_mm256_permute2f128_ps(a.v, a.v, 1)});
    if constexpr (kHeads <= 2) a = op(a, Vec{_mm256_permute_ps(a.v, 0x4E)});
    if constexpr (kHeads <= 1) a = op(a, Vec{_mm256_permute_ps(a.v, 0xB1)});
    return a;
  }
  // Every lane gets the sum of its group of `lanes` neighbours: 1, 2, 4 or 8.
  static Vec group_sum(Vec a, int lanes) {
    if (lanes > 1) a = a + Vec{_mm256_permute_ps(a.v, 0xB1)};
    if (lanes > 2) a = a + Vec{_mm256_permute_ps(a.v, 0x4E)};
    if (lanes > 4) a = a + Vec{_mm256_permute2f128_ps(a.v, a.v, 1)};
    return a;
  }
  // hadd would be two shuffles and an addition; a blend is cheaper than a shuffle
  template <int kCount>
  static Vec add_halves(Vec a, Vec b) {
    if constexpr (kCount == 2) {
      return Vec{_mm256_blend_ps(a.v, b.v, 0xCC)} + Vec{_mm256_shuffle_ps(a.v, b.v, 0x4E)};
    } else if constexpr (kCount == 4) {
      return Vec{_mm256_shuffle_ps(a.v, b.v, 0x88)} + Vec{_mm256_shuffle_ps(a.v, b.v, 0xDD)};
    } else {
      return Vec{_mm256_blend_ps(a.v, b.v, 0xF0)} + Vec{_mm256_permute2f128_ps(a.v, b.v, 0x21)};
    }
  }
  template <int kColumns>
  static Vec transposed(Vec a) {
    if constexpr (kColumns == 2) {
      return {_mm256_permutevar8x32_ps(a.v, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7))};
    } else if constexpr (kColumns == 4) {
      return {_mm256_permutevar8x32_ps(a.v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))};
    } else {
      return a;
    }
  }
  void store_firsts(float* p, int lanes, int count) const {
    alignas(32) float all[kWidth];
    store(all);
    for (int k = 0; k < count; ++k) p[k] = all[k * lanes];
  }
  static Index index(const int32_t* p, int32_t from) {
    const __m256i lanes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_sub_epi32(lanes, _mm256_set1_epi32(from));
  }
  static Vec expand(const float* p, Index index) {
    return {_mm256_permutevar8x32_ps(_mm256_loadu_ps(p), index)};
  }
  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Vec if_positive(Vec s, Vec a, Vec b) {
    const __m256 positive = _mm256_cmp_ps(s.v, _mm256_setzero_ps(), _CMP_GT_OQ);
    return {_mm256_blendv_ps(b.v, a.v, positive)};
  }
  static Vec where_positive(Vec s, Vec a) {
    return {_mm256_and_ps(_mm256_cmp_ps(s.v, _mm256_setzero_ps(), _CMP_GT_OQ), a.v)};
  }
  static Vec if_negative(Vec s, Vec a, Vec b) { return {_mm256_blendv_ps(b.v, a.v, s.v)}; }
  static Vec keep(Vec w, const uint32_t* words, uint32_t threshold) {
    const __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
    const __m256i larger = _mm256_max_epu32(word, _mm256_set1_epi32(int32_t(threshold)));
    return {_mm256_and_ps(w.v, _mm256_castsi256_ps(_mm256_cmpeq_epi32(larger, word)))};
  }
  static Vec as_exponent(Vec x) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x.v), 23))};
  }
};

template <>
struct Vec<double> {
  static constexpr int kWidth = 4;
  static constexpr bool kMasks = false;          // loads of some lanes are as fast as of all
  static constexpr bool kPermutes = true;        // expand is one instruction
  static constexpr bool kManyRegisters = false;  // 32, not 16
  static constexpr int kLastTile = 6;  // vectors of a row's last tile, when sums alone are in them
  using Index = __m256i;               // pairs of 32-bit lanes
  __m256d v;

  static Vec set(double value) { return {_mm256_set1_pd(value)}; }
  static __m256i first(int n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLaneMask + 8 - 2 * n));
  }
  static Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static Vec load(const double* p, int n) { return {_mm256_maskload_pd(p, first(n))}; }
  void store(double* p) const { _mm256_storeu_pd(p, v); }
  void store(double* p, int n) const {
    if (n >= kWidth) return store(p);
    __m128d part = _mm256_castpd256_pd128(v);
    if (n & 2) {
      _mm_storeu_pd(p, part);
      part = _mm256_extractf128_pd(v, 1);
      p += 2;
    }
    if (n & 1) _mm_store_sd(p, part);
  }
  static Vec merge(int n, Vec a, Vec b) {
    return {_mm256_blendv_pd(b.v, a.v, _mm256_castsi256_pd(first(n < kWidth ? n : kWidth)))};
  }
  template <int kHeads>
  static Vec load_edges(const double* base, int64_t stride, const int32_t* col, int edges,
                        int heads) {
    const auto at = [&](int k) { return base + int64_t(col[k < edges ? k : 0]) * stride; };
    if constexpr (kHeads == 4) {
      return load(at(0), heads);
    } else if constexpr (kHeads == 2) {
      return {_mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(at(0))), _mm_loadu_pd(at(1)),
                                   1)};
    } else {
      return {_mm256_setr_pd(*at(0), *at(1), *at(2), *at(3))};
    }
  }
  static void load_fours(const double* base, int64_t stride, const int32_t* col, int edges,
                         Vec (&four)[4]) {
    const auto row = [&](int k) {
      return _mm256_loadu_pd(base + int64_t(col[k < edges ? k : 0]) * stride);
    };
    const __m256d a = row(0), b = row(1), c = row(2), d = row(3);
    const __m256d ab = _mm256_unpacklo_pd(a, b), cd = _mm256_unpacklo_pd(c, d);
    four[0].v = _mm256_permute2f128_pd(ab, cd, 0x20);
    four[2].v = _mm256_permute2f128_pd(ab, cd, 0x31);
    const __m256d ab_high = _mm256_unpackhi_pd(a, b), cd_high = _mm256_unpackhi_pd(c, d);
    four[1].v = _mm256_permute2f128_pd(ab_high, cd_high, 0x20);
    four[3].v = _mm256_permute2f128_pd(ab_high, cd_high, 0x31);
  }
  template <int kHeads>
  static Vec repeat(const double* p, int heads) {
    if constexpr (kHeads == 4) {
      return load(p, heads);
    } else if constexpr (kHeads == 2) {
      const __m128d pair = _mm_loadu_pd(p);
      return {_mm256_insertf128_pd(_mm256_castpd128_pd256(pair), pair, 1)};
    } else {
      return set(*p);
    }
  }
  template <int kHeads, class Op>
  static Vec fold(Vec a, Op op) {
    if constexpr (kHeads <= 2) a = op(a, Vec{_mm256_permute2f128_pd(a.v, a.v, 1)});
    if constexpr (kHeads <= 1) a = op(a, Vec{_mm256_permute_pd(a.v, 0x5)});
    return a;
  }
  static Vec group_sum(Vec a, int lanes) {
    if (lanes > 1) a = a + Vec{_mm256_permute_pd(a.v, 0x5)};
    if (lanes > 2) a = a + Vec{_mm256_permute2f128_pd(a.v, a.v, 1)};
    return a;
  }
  template <int kCount>
  static Vec add_halves(Vec a, Vec b) {
    if constexpr (kCount == 2) {
      return Vec{_mm256_blend_pd(a.v, b.v, 0xA)} + Vec{_mm256_shuffle_pd(a.v, b.v, 0x5)};
    } else {
      return Vec{_mm256_blend_pd(a.v, b.v, 0xC)} + Vec{_mm256_permute2f128_pd(a.v, b.v, 0x21)};
    }
  }
  template <int kColumns>
  static Vec transposed(Vec a) {
    return kColumns == 2 ? Vec{_mm256_permute4x64_pd(a.v, 0xD8)} : a;
  }
  void store_firsts(double* p, int lanes, int count) const {
    alignas(32) double all[kWidth];
    store(all);
    for (int k = 0; k < count; ++k) p[k] = all[k * lanes];
  }
  static Index index(const int32_t* p, int32_t from) {
    const auto even = [&](int k) { return 2 * (p[k] - from); };
    return _mm256_setr_epi32(even(0), even(0) + 1, even(1), even(1) + 1, even(2), even(2) + 1,
                             even(3), even(3) + 1);
  }
  static Vec expand(const double* p, Index index) {
    const __m256 pairs = _mm256_castpd_ps(_mm256_loadu_pd(p));
    return {_mm256_castps_pd(_mm256_permutevar8x32_ps(pairs, index))};
  }
  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_pd(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_pd(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_pd(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_pd(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm256_max_pd(a.v, b.v)}; }
  static Vec if_positive(Vec s, Vec a, Vec b) {
    const __m256d positive = _mm256_cmp_pd(s.v, _mm256_setzero_pd(), _CMP_GT_OQ);
    return {_mm256_blendv_pd(b.v, a.v, positive)};
  }
  static Vec where_positive(Vec s, Vec a) {
    return {_mm256_and_pd(_mm256_cmp_pd(s.v, _mm256_setzero_pd(), _CMP_GT_OQ), a.v)};
  }
  static Vec if_negative(Vec s, Vec a, Vec b) { return {_mm256_blendv_pd(b.v, a.v, s.v)}; }
  static Vec keep(Vec w, const uint32_t* words, uint32_t threshold) {
    const __m128i word = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words));
    const __m128i larger = _mm_max_epu32(word, _mm_set1_epi32(int32_t(threshold)));
    const __m256i kept = _mm256_cvtepi32_epi64(_mm_cmpeq_epi32(larger, word));
    return {_mm256_and_pd(w.v, _mm256_castsi256_pd(kept))};
  }
  static Vec as_exponent(Vec x) {
    return {_mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(x.v), 52))};
  }
};

// words[e * stride + group * 4 ...] of so many groups from `first` on, for n edges; four edges at a
// time, one per 64-bit lane
static inline void philox_words(uint64_t seed, const int32_t* ids, int n, int first, int groups,
                                int stride, uint32_t* words) {
  const __m256i m0 = _mm256_set1_epi64x(kPhiloxM0), m1 = _mm256_set1_epi64x(kPhiloxM1);
  for (int e = 0; e < n; e += 4) {
    const int count = n - e < 4 ? n - e : 4;
    alignas(16) int32_t four[4] = {0, 0, 0, 0};
    for (int k = 0; k < count; ++k) four[k] = ids[e + k];
    const __m256i edge = _mm256_cvtepu32_epi64(_mm_load_si128(reinterpret_cast<__m128i*>(four)));
    for (int g = 0; g < groups; ++g) {
      __m256i c0 = edge, c1 = _mm256_setzero_si256(), c2 = _mm256_set1_epi64x(first + g), c3 = c1;
      uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
      for (int round = 0; round < kPhiloxRounds; ++round) {
        const __m256i p0 = _mm256_mul_epu32(m0, c0), p1 = _mm256_mul_epu32(m1, c2);
        c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), c1),
                              _mm256_set1_epi64x(k0));
        c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), c3),
                              _mm256_set1_epi64x(k1));
        c1 = p1;
        c3 = p0;
        k0 += kPhiloxW0;
        k1 += kPhiloxW1;
      }
      const __m256i low = _mm256_set1_epi64x(0xFFFFFFFF);
      const __m256i a = _mm256_or_si256(_mm256_and_si256(c0, low), _mm256_slli_epi64(c1, 32));
      const __m256i b = _mm256_or_si256(_mm256_and_si256(c2, low), _mm256_slli_epi64(c3, 32));
      alignas(32) uint32_t even[8], odd[8];  // edges 0 2 and 1 3
      _mm256_store_si256(reinterpret_cast<__m256i*>(even), _mm256_unpacklo_epi64(a, b));
      _mm256_store_si256(reinterpret_cast<__m256i*>(odd), _mm256_unpackhi_epi64(a, b));
      for (int k = 0; k < count; ++k) {
        const uint32_t* from = (k % 2 == 0 ? even : odd) + k / 2 * 4;
        _mm_storeu_si128(reinterpret_cast<__m128i*>(words + int64_t(e + k) * stride + g * 4),
                         _mm_load_si128(reinterpret_cast<const __m128i*>(from)));
      }
    }
  }
}

}  // namespace GK_ISA
}  // namespace gatkernels
