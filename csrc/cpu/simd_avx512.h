// Vectors of AVX-512 (F, BW, VL, DQ). simd_portable.h says what each function does.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "../core/half.h"
#include "../core/philox.h"

namespace gatkernels {
namespace GK_ISA {

template <class A>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int kWidth = 16;
  static constexpr bool kMasks = true;          // loads of some lanes are as fast as of all
  static constexpr bool kPermutes = true;       // expand is one instruction
  static constexpr bool kManyRegisters = true;  // 32, not 16
  static constexpr int kLastTile = 4;  // vectors of a row's last tile, when sums alone are in them
  using Index = __m512i;
  __m512 v;

  static Vec set(float value) { return {_mm512_set1_ps(value)}; }
  static __mmask16 first(int n) { return __mmask16((1u << n) - 1); }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  static Vec load(const BFloat16* p, int n) {
    const __m256i bits = _mm256_maskz_loadu_epi16(first(n), p);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  static Vec load(const Half* p, int n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))};
  }
  void store(BFloat16* p, int n) const {  // to nearest, ties to even
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i kept =
        _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(int32_t(0x400000)));
    _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
  }
  void store(Half* p, int n) const {
    _mm256_mask_storeu_epi16(p, first(n),
                             _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  // Without a mask where that can be: what a masked store wrote is read again only when it has
  // reached the cache.
  void store(float* p, int n) const { n < kWidth ? store_first(v, p, n) : store(p); }
  static void store_first(__m512 v, float* p, int n) {
    if (n == 8) return _mm256_storeu_ps(p, _mm512_castps512_ps256(v));
    if (n == 4) return _mm_storeu_ps(p, _mm512_castps512_ps128(v));
    if (n == 1) return _mm_store_ss(p, _mm512_castps512_ps128(v));
    _mm512_mask_storeu_ps(p, first(n), v);
  }
  static Vec merge(int n, Vec a, Vec b) {
    return {_mm512_mask_blend_ps(n < kWidth ? first(n) : __mmask16(-1), b.v, a.v)};
  }
  template <int kHeads>
  static Vec load_edges(const float* base, int64_t stride, const int32_t* col, int edges,
                        int heads) {
    const auto at = [&](int k) { return base + int64_t(col[k < edges ? k : 0]) * stride; };
    if constexpr (kHeads == 16) {
      return load(at(0), heads);
    } else if constexpr (kHeads == 8) {
      const __mmask8 m = __mmask8((1u << heads) - 1);
      return {_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_maskz_loadu_ps(m, at(0))),
                                 _mm256_maskz_loadu_ps(m, at(1)), 1)};
    } else if constexpr (kHeads == 4) {
      const __mmask8 m = __mmask8((1u << heads) - 1);
      const auto pair = [&](int k) {
        return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_maskz_loadu_ps(m, at(k))),
                                    _mm_maskz_loadu_ps(m, at(k + 1)), 1);
      };
      return {_mm512_insertf32x8(_mm512_castps256_ps512(pair(0)), pair(2), 1)};
    } else if constexpr (kHeads == 2) {
      const auto pair = [&](int k) {
        double bits;
        __builtin_memcpy(&bits, at(k), sizeof(bits));
        return bits;
      };
      return {_mm512_castpd_ps(
          _mm512_setr_pd(pair(0), pair(1), pair(2), pair(3), pair(4), pair(5), pair(6), pair(7)))};
    } else {  // no gather: it takes longer, and waits for stores before it
      const auto eight = [&](int k) {
        return _mm256_setr_ps(*at(k), *at(k + 1), *at(k + 2), *at(k + 3), *at(k + 4), *at(k + 5),
                              *at(k + 6), *at(k + 7));
      };
      const __m512 low = _mm512_castps256_ps512(eight(0));
      return {edges > 8 ? _mm512_insertf32x8(low, eight(8), 1)
                        : _mm512_insertf32x8(low, _mm512_castps512_ps256(low), 1)};
    }
  }
  static void load_fours(const float* base, int64_t stride, const int32_t* col, int edges,
                         Vec (&four)[4]) {
    const auto at = [&](int k) {
      return _mm_loadu_ps(base + int64_t(col[k < edges ? k : 0]) * stride);
    };
    const auto pair = [&](int k) {
      return _mm256_insertf128_ps(_mm256_castps128_ps256(at(k)), at(k + 4), 1);
    };
    const auto quad = [&](int k) {  // of edges k, k + 4, k + 8 and k + 12
      return _mm512_insertf32x8(_mm512_castps256_ps512(pair(k)), pair(k + 8), 1);
    };
    const __m512 a = quad(0), b = quad(1), c = quad(2), d = quad(3);
    const __m512 ab = _mm512_unpacklo_ps(a, b), cd = _mm512_unpacklo_ps(c, d);
    four[0].v = _mm512_shuffle_ps(ab, cd, 0x44);
    four[1].v = _mm512_shuffle_ps(ab, cd, 0xEE);
    const __m512 ab_high = _mm512_unpackhi_ps(a, b), cd_high = _mm512_unpackhi_ps(c, d);
    four[2].v = _mm512_shuffle_ps(ab_high, cd_high, 0x44);
    four[3].v = _mm512_shuffle_ps(ab_high, cd_high, 0xEE);
  }
  template <int kHeads>
  static Vec repeat(const float* p, int heads) {
    if constexpr (kHeads == 16) {
      return load(p, heads);
    } else if constexpr (kHeads == 8) {
      return {_mm512_broadcast_f32x8(_mm256_maskz_loadu_ps(__mmask8(first(heads)), p))};
    } else if constexpr (kHeads == 4) {
      return {_mm512_broadcast_f32x4(_mm_maskz_loadu_ps(__mmask8(first(heads)), p))};
    } else if constexpr (kHeads == 2) {
      double pair;
      __builtin_memcpy(&pair, p, sizeof(pair));
      return {_mm512_castpd_ps(_mm512_set1_pd(pair))};
    } else {
      return set(*p);
    }
  }
  template <int kHeads, class Op>
  static Vec fold(Vec a, Op op) {
    if constexpr (kHeads <= 8) a = op(a, Vec{_mm512_shuffle_f32x4(a.v, a.v, 0x4E)});
    if constexpr (kHeads <= 4) a = op(a, Vec{_mm512_shuffle_f32x4(a.v, a.v, 0xB1)});
    if constexpr (kHeads <= 2) a = op(a, Vec{_mm512_permute_ps(a.v, 0x4E)});
    if constexpr (kHeads <= 1) a = op(a, Vec{_mm512_permute_ps(a.v, 0xB1)});
    return a;
  }
  // Every lane gets the sum of its group of `lanes` neighbours: 1, 2, 4, 8 or 16.
  static Vec group_sum(Vec a, int lanes) {
    if (lanes > 1) a = a + Vec{_mm512_permute_ps(a.v, 0xB1)};
    if (lanes > 2) a = a + Vec{_mm512_permute_ps(a.v, 0x4E)};
    if (lanes > 4) a = a + Vec{_mm512_shuffle_f32x4(a.v, a.v, 0xB1)};
    if (lanes > 8) a = a + Vec{_mm512_shuffle_f32x4(a.v, a.v, 0x4E)};
    return a;
  }
  // hadd would be two shuffles and an addition; a blend is cheaper than a shuffle
  template <int kCount>
  static Vec add_halves(Vec a, Vec b) {
    if constexpr (kCount == 2) {
      return Vec{_mm512_mask_blend_ps(0xCCCC, a.v, b.v)} + Vec{_mm512_shuffle_ps(a.v, b.v, 0x4E)};
    } else if constexpr (kCount == 4) {
      return Vec{_mm512_shuffle_ps(a.v, b.v, 0x88)} + Vec{_mm512_shuffle_ps(a.v, b.v, 0xDD)};
    } else {
      return Vec{_mm512_shuffle_f32x4(a.v, b.v, 0x88)} + Vec{_mm512_shuffle_f32x4(a.v, b.v, 0xDD)};
    }
  }
  // Lanes 0 4 1 5 2 6 3 7 of each half
  static Vec zipped(Vec a) {
    const __m512i from = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    return {_mm512_permutexvar_ps(from, a.v)};
  }
  template <int kColumns>
  static Vec transposed(Vec a) {
    if constexpr (kColumns == 2) {
      const __m512i from = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
      return {_mm512_permutexvar_ps(from, a.v)};
    } else if constexpr (kColumns == 4) {
      const __m512i from = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
      return {_mm512_permutexvar_ps(from, a.v)};
    } else if constexpr (kColumns == 8) {
      const __m512i from = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
      return {_mm512_permutexvar_ps(from, a.v)};
    } else {
      return a;
    }
  }
  void store_firsts(float* p, int lanes, int count) const {
    const int mask = lanes == 1 ? 0xFFFF : lanes == 2 ? 0x5555 : lanes == 4 ? 0x1111 : 0x0101;
    _mm512_mask_storeu_ps(p, first(count), _mm512_maskz_compress_ps(__mmask16(mask), v));
  }
  static Index index(const int32_t* p, int32_t from) {
    return _mm512_sub_epi32(_mm512_loadu_si512(p), _mm512_set1_epi32(from));
  }
  static Vec expand(const float* p, Index index) {
    return {_mm512_permutexvar_ps(index, _mm512_loadu_ps(p))};
  }
  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Vec if_positive(Vec s, Vec a, Vec b) {
    const __mmask16 positive = _mm512_cmp_ps_mask(s.v, _mm512_setzero_ps(), _CMP_GT_OQ);
    return {_mm512_mask_blend_ps(positive, b.v, a.v)};
  }
  static Vec where_positive(Vec s, Vec a) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(s.v, _mm512_setzero_ps(), _CMP_GT_OQ), a.v)};
  }
  static Vec if_negative(Vec s, Vec a, Vec b) {
    const __mmask16 negative = _mm512_cmp_ps_mask(s.v, _mm512_setzero_ps(), _CMP_LT_OQ);
    return {_mm512_mask_blend_ps(negative, b.v, a.v)};
  }
  static Vec keep(Vec w, const uint32_t* words, uint32_t threshold) {
    const __mmask16 kept =
        _mm512_cmpge_epu32_mask(_mm512_loadu_si512(words), _mm512_set1_epi32(int32_t(threshold)));
    return {_mm512_maskz_mov_ps(kept, w.v)};
  }
  static Vec as_exponent(Vec x) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x.v), 23))};
  }
};

template <>
struct Vec<double> {
  static constexpr int kWidth = 8;
  static constexpr bool kMasks = true;          // loads of some lanes are as fast as of all
  static constexpr bool kPermutes = true;       // expand is one instruction
  static constexpr bool kManyRegisters = true;  // 32, not 16
  static constexpr int kLastTile = 4;  // vectors of a row's last tile, when sums alone are in them
  using Index = __m512i;
  __m512d v;

  static Vec set(double value) { return {_mm512_set1_pd(value)}; }
  static __mmask8 first(int n) { return __mmask8((1u << n) - 1); }
  static Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static Vec load(const double* p, int n) { return {_mm512_maskz_loadu_pd(first(n), p)}; }
  void store(double* p) const { _mm512_storeu_pd(p, v); }
  void store(double* p, int n) const { n < kWidth ? store_first(v, p, n) : store(p); }
  static void store_first(__m512d v, double* p, int n) {
    if (n == 4) return _mm256_storeu_pd(p, _mm512_castpd512_pd256(v));
    if (n == 1) return _mm_store_sd(p, _mm512_castpd512_pd128(v));
    _mm512_mask_storeu_pd(p, first(n), v);
  }
  static Vec merge(int n, Vec a, Vec b) {
    return {_mm512_mask_blend_pd(n < kWidth ? first(n) : __mmask8(-1), b.v, a.v)};
  }
  template <int kHeads>
  static Vec load_edges(const double* base, int64_t stride, const int32_t* col, int edges,
                        int heads) {
    const auto at = [&](int k) { return base + int64_t(col[k < edges ? k : 0]) * stride; };
    if constexpr (kHeads == 8) {
      return load(at(0), heads);
    } else if constexpr (kHeads == 4) {
      const __mmask8 m = __mmask8((1u << heads) - 1);
      return {_mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_maskz_loadu_pd(m, at(0))),
                                 _mm256_maskz_loadu_pd(m, at(1)), 1)};
    } else if constexpr (kHeads == 2) {
      const auto pair = [&](int k) {
        return _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(at(k))),
                                    _mm_loadu_pd(at(k + 1)), 1);
      };
      return {_mm512_insertf64x4(_mm512_castpd256_pd512(pair(0)), pair(2), 1)};
    } else {
      return {_mm512_setr_pd(*at(0), *at(1), *at(2), *at(3), *at(4), *at(5), *at(6), *at(7))};
    }
  }
  static void load_fours(const double* base, int64_t stride, const int32_t* col, int edges,
                         Vec (&four)[4]) {
    const auto at = [&](int k) {
      return _mm256_loadu_pd(base + int64_t(col[k < edges ? k : 0]) * stride);
    };
    const auto pair = [&](int k) {  // of edges k and k + 4
      return _mm512_insertf64x4(_mm512_castpd256_pd512(at(k)), at(k + 4), 1);
    };
    const __m512i firsts = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const __m512i seconds = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    const __m512d a = pair(0), b = pair(1), c = pair(2), d = pair(3);
    const __m512d ab = _mm512_unpacklo_pd(a, b), cd = _mm512_unpacklo_pd(c, d);
    four[0].v = _mm512_permutex2var_pd(ab, firsts, cd);
    four[2].v = _mm512_permutex2var_pd(ab, seconds, cd);
    const __m512d ab_high = _mm512_unpackhi_pd(a, b), cd_high = _mm512_unpackhi_pd(c, d);
    four[1].v = _mm512_permutex2var_pd(ab_high, firsts, cd_high);
    four[3].v = _mm512_permutex2var_pd(ab_high, seconds, cd_high);
  }
  template <int kHeads>
  static Vec repeat(const double* p, int heads) {
    if constexpr (kHeads == 8) {
      return load(p, heads);
    } else if constexpr (kHeads == 4) {
      return {_mm512_broadcast_f64x4(_mm256_maskz_loadu_pd(first(heads), p))};
    } else if constexpr (kHeads == 2) {
      return {_mm512_broadcast_f64x2(_mm_loadu_pd(p))};
    } else {
      return set(*p);
    }
  }
  template <int kHeads, class Op>
  static Vec fold(Vec a, Op op) {
    if constexpr (kHeads <= 4) a = op(a, Vec{_mm512_shuffle_f64x2(a.v, a.v, 0x4E)});
    if constexpr (kHeads <= 2) a = op(a, Vec{_mm512_shuffle_f64x2(a.v, a.v, 0xB1)});
    if constexpr (kHeads <= 1) a = op(a, Vec{_mm512_permute_pd(a.v, 0x55)});
    return a;
  }
  static Vec group_sum(Vec a, int lanes) {
    if (lanes > 1) a = a + Vec{_mm512_permute_pd(a.v, 0x55)};
    if (lanes > 2) a = a + Vec{_mm512_shuffle_f64x2(a.v, a.v, 0xB1)};
    if (lanes > 4) a = a + Vec{_mm512_shuffle_f64x2(a.v, a.v, 0x4E)};
    return a;
  }
  template <int kCount>
  static Vec add_halves(Vec a, Vec b) {
    if constexpr (kCount == 2) {
      return Vec{_mm512_unpacklo_pd(a.v, b.v)} + Vec{_mm512_unpackhi_pd(a.v, b.v)};
    } else {
      return Vec{_mm512_shuffle_f64x2(a.v, b.v, 0x88)} + Vec{_mm512_shuffle_f64x2(a.v, b.v, 0xDD)};
    }
  }
  template <int kColumns>
  static Vec transposed(Vec a) {
    if constexpr (kColumns == 2) {
      return {_mm512_permutexvar_pd(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), a.v)};
    } else if constexpr (kColumns == 4) {
      return {_mm512_permutexvar_pd(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), a.v)};
    } else {
      return a;
    }
  }
  void store_firsts(double* p, int lanes, int count) const {
    const int mask = lanes == 1 ? 0xFF : lanes == 2 ? 0x55 : 0x11;
    _mm512_mask_storeu_pd(p, first(count), _mm512_maskz_compress_pd(__mmask8(mask), v));
  }
  static Index index(const int32_t* p, int32_t from) {
    const __m256i lanes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_cvtepi32_epi64(_mm256_sub_epi32(lanes, _mm256_set1_epi32(from)));
  }
  static Vec expand(const double* p, Index index) {
    return {_mm512_permutexvar_pd(index, _mm512_loadu_pd(p))};
  }
  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_pd(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_pd(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_pd(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_pd(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm512_max_pd(a.v, b.v)}; }
  static Vec if_positive(Vec s, Vec a, Vec b) {
    const __mmask8 positive = _mm512_cmp_pd_mask(s.v, _mm512_setzero_pd(), _CMP_GT_OQ);
    return {_mm512_mask_blend_pd(positive, b.v, a.v)};
  }
  static Vec where_positive(Vec s, Vec a) {
    return {_mm512_maskz_mov_pd(_mm512_cmp_pd_mask(s.v, _mm512_setzero_pd(), _CMP_GT_OQ), a.v)};
  }
  static Vec if_negative(Vec s, Vec a, Vec b) {
    const __mmask8 negative = _mm512_cmp_pd_mask(s.v, _mm512_setzero_pd(), _CMP_LT_OQ);
    return {_mm512_mask_blend_pd(negative, b.v, a.v)};
  }
  static Vec keep(Vec w, const uint32_t* words, uint32_t threshold) {
    const __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
    const __mmask8 kept = _mm256_cmpge_epu32_mask(word, _mm256_set1_epi32(int32_t(threshold)));
    return {_mm512_maskz_mov_pd(kept, w.v)};
  }
  static Vec as_exponent(Vec x) {
    return {_mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(x.v), 52))};
  }
};

// Ten rounds over counters in 64-bit lanes; the words are the lower halves of c.
static inline void philox_rounds(uint64_t seed, __m512i (&c)[4]) {
  const __m512i m0 = _mm512_set1_epi64(kPhiloxM0), m1 = _mm512_set1_epi64(kPhiloxM1);
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const __m512i p0 = _mm512_mul_epu32(m0, c[0]), p1 = _mm512_mul_epu32(m1, c[2]);
    c[0] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c[1], _mm512_set1_epi64(k0), 0x96);
    c[2] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c[3], _mm512_set1_epi64(k1), 0x96);
    c[1] = p1;
    c[3] = p0;
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
}

// word[w][l]: word w of counter (counter + l, 0)
static inline void philox_lanes(uint64_t seed, uint64_t counter,
                                uint32_t (&word)[4][kPhiloxLanes]) {
  const __m512i zero = _mm512_setzero_si512();
  for (int l = 0; l < kPhiloxLanes; l += 8) {
    const __m512i at = _mm512_add_epi64(_mm512_set1_epi64(int64_t(counter) + l),
                                        _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
    __m512i c[4] = {at, _mm512_srli_epi64(at, 32), zero, zero};
    philox_rounds(seed, c);
    for (int w = 0; w < 4; ++w) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(word[w] + l), _mm512_cvtepi64_epi32(c[w]));
    }
  }
}

// words[e * stride + group * 4 ...] of so many groups from `first` on, for n edges; eight edges at
// a time, one per 64-bit lane
static inline void philox_words(uint64_t seed, const int32_t* ids, int n, int first, int groups,
                                int stride, uint32_t* words) {
  for (int e = 0; e < n; e += 8) {
    const int count = n - e < 8 ? n - e : 8;
    const __m512i edge =
        _mm512_cvtepu32_epi64(_mm256_maskz_loadu_epi32(__mmask8((1u << count) - 1), ids + e));
    for (int g = 0; g < groups; ++g) {
      __m512i c[4] = {edge, _mm512_setzero_si512(), _mm512_set1_epi64(first + g),
                      _mm512_setzero_si512()};
      philox_rounds(seed, c);
      const __m512i low = _mm512_set1_epi64(0xFFFFFFFF);
      const __m512i a = _mm512_or_si512(_mm512_and_si512(c[0], low), _mm512_slli_epi64(c[1], 32));
      const __m512i b = _mm512_or_si512(_mm512_and_si512(c[2], low), _mm512_slli_epi64(c[3], 32));
      alignas(64) uint32_t even[16], odd[16];  // edges 0 2 4 6 and 1 3 5 7
      _mm512_store_si512(even, _mm512_unpacklo_epi64(a, b));
      _mm512_store_si512(odd, _mm512_unpackhi_epi64(a, b));
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
