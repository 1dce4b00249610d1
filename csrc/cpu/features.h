// The steps before attention: sparse features times a dense matrix, and dropout of features.
// Included once per instruction set.
#pragma once
#include "rows.h"

namespace gatkernels {
namespace GK_ISA {

// out = S x for a sparse S, or its transpose in CSC: a row's values are gathered through `order`.
template <class A>
struct SparseProductKernel {
  using V = Vec<A>;
  const SparseProduct& p;
  const A* values;
  const A* x;

  explicit SparseProductKernel(const SparseProduct& params)
      : p(params),
        values(static_cast<const A*>(params.values)),
        x(static_cast<const A*>(params.x.data)) {}

  // Adds edges [begin, end) to sum [width]; zeros (dropped values, mostly) are left out.
  void add(int64_t begin, int64_t end, A* sum) const {
    int32_t col[kBlock];
    A value[kBlock];
    for (int64_t e = begin; e < end; e += kBlock) {
      const int64_t stop = e + kBlock < end ? e + kBlock : end;
      int n = 0;
      for (int64_t k = e; k < stop; ++k) {
        const A v = values[p.order == nullptr ? k : int64_t(p.order[k])];
        col[n] = p.col[k];
        value[n] = v;
        n += v != A(0);
      }
      for (int64_t f = 0; f < p.width; f += V::kTile * V::kWidth) {
        const int64_t left = (p.width - f + V::kWidth - 1) / V::kWidth;
        tiles<V::kTile>(left < V::kTile ? int(left) : V::kTile, col, value, n, f, sum);
      }
    }
  }

  template <int kN>
  void tiles(int vectors, const int32_t* col, const A* value, int n, int64_t f, A* sum) const {
    if (vectors == kN) {
      tile<kN>(col, value, n, f, sum);
    } else if constexpr (kN > 1) {
      tiles<kN - 1>(vectors, col, value, n, f, sum);
    }
  }

  template <int kN>
  void tile(const int32_t* col, const A* value, int n, int64_t f, A* sum) const {
    constexpr int kWidth = V::kWidth;
    const int64_t left = p.width - f - (kN - 1) * kWidth;
    const int tail = left < kWidth ? int(left) : kWidth;
    V acc[kN];
    for (int k = 0; k < kN; ++k) acc[k] = V::load(sum + f + k * kWidth, k < kN - 1 ? kWidth : tail);
    for (int e = 0; e < n; ++e) {
      const A* next = x + int64_t(col[e + kPrefetch < n ? e + kPrefetch : n - 1]) * p.x.stride + f;
      for (int k = 0; k < kN; ++k) __builtin_prefetch(next + k * kWidth);
      const A* row = x + int64_t(col[e]) * p.x.stride + f;
      const V v = V::set(value[e]);
      for (int k = 0; k < kN - 1; ++k) acc[k] = V::fma(v, V::load(row + k * kWidth), acc[k]);
      constexpr int last = (kN - 1) * kWidth;
      const V end = tail == kWidth ? V::load(row + last) : V::load(row + last, tail);
      acc[kN - 1] = V::fma(v, end, acc[kN - 1]);
    }
    for (int k = 0; k < kN - 1; ++k) acc[k].store(sum + f + k * kWidth);
    acc[kN - 1].store(sum + f + (kN - 1) * kWidth, tail);
  }

  A* out(int64_t row) const { return static_cast<A*>(p.out) + row * p.width; }

  static void rows(void* context, int64_t, int64_t begin, int64_t end, char*) {
    const auto& self = *static_cast<const SparseProductKernel*>(context);
    for (int64_t row = begin; row < end; ++row) {
      A* sum = self.out(row);
      for (int64_t f = 0; f < self.p.width; ++f) sum[f] = A(0);
      self.add(self.p.rowptr[row], self.p.rowptr[row + 1], sum);
    }
  }
  static void segment(void* context, int64_t, int64_t begin, int64_t end, char* partial, char*) {
    const auto& self = *static_cast<const SparseProductKernel*>(context);
    A* sum = reinterpret_cast<A*>(partial);
    for (int64_t f = 0; f < self.p.width; ++f) sum[f] = A(0);
    self.add(begin, end, sum);
  }
  static void merge(void* context, int64_t row, int64_t, const char* partials, int64_t count,
                    char*) {
    const auto& self = *static_cast<const SparseProductKernel*>(context);
    const A* part = reinterpret_cast<const A*>(partials);
    A* sum = self.out(row);
    for (int64_t f = 0; f < self.p.width; ++f) {
      A total = A(0);
      for (int64_t k = 0; k < count; ++k) total += part[k * self.p.width + f];
      sum[f] = total;
    }
  }

  Status run() {
    return run_rows(p.rowptr, p.rows, p.threads,
                    {this, rows, segment, merge, 0, size_t(p.width) * sizeof(A)});
  }
};

template <class A>
Status sparse_product(const SparseProduct& p) {
  return SparseProductKernel<A>(p).run();
}

constexpr int kLanes = 16;
constexpr int kDropBlock = 4 * kLanes;  // values drawn for at a time

// word[w][l]: word w of counter (counter + l, 0). Lanes side by side need no transposing.
static inline void philox_lanes(uint64_t seed, uint64_t counter, uint32_t (&word)[4][kLanes]) {
  for (int l = 0; l < kLanes; ++l) {
    word[0][l] = uint32_t(counter + l);
    word[1][l] = uint32_t((counter + l) >> 32);
    word[2][l] = word[3][l] = 0;
  }
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    for (int l = 0; l < kLanes; ++l) {
      const uint64_t p0 = uint64_t(kPhiloxM0) * word[0][l], p1 = uint64_t(kPhiloxM1) * word[2][l];
      word[0][l] = uint32_t(p1 >> 32) ^ word[1][l] ^ k0;
      word[2][l] = uint32_t(p0 >> 32) ^ word[3][l] ^ k1;
      word[1][l] = uint32_t(p1);
      word[3][l] = uint32_t(p0);
    }
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
}

// Value 64 b + 16 w + l is kept where word w of counter (16 b + l, 0) says so.
template <class A>
struct FeatureDropoutKernel {
  const FeatureDropout& p;
  uint64_t seed;
  uint32_t threshold;
  A scale;

  explicit FeatureDropoutKernel(const FeatureDropout& params)
      : p(params),
        seed(uint64_t(*params.dropout.seed)),
        threshold(keep_threshold(params.dropout.p)),
        scale(A(keep_scale(params.dropout.p))) {}

  static void blocks(void* context, int64_t begin, int64_t end, char*) {
    const auto& self = *static_cast<const FeatureDropoutKernel*>(context);
    const uint32_t threshold = self.threshold;
    const A scale = self.scale;
    for (int64_t b = begin; b < end; ++b) {
      alignas(64) uint32_t word[4][kLanes];
      philox_lanes(self.seed, uint64_t(b) * kLanes, word);
      const uint32_t* words = word[0];
      const A* x = static_cast<const A*>(self.p.x) + b * kDropBlock;
      A* out = static_cast<A*>(self.p.out) + b * kDropBlock;
      if (self.p.count - b * kDropBlock >= kDropBlock) {
        for (int k = 0; k < kDropBlock; ++k) out[k] = words[k] >= threshold ? x[k] * scale : A(0);
      } else {
        const int rest = int(self.p.count - b * kDropBlock);
        for (int k = 0; k < rest; ++k) out[k] = words[k] >= threshold ? x[k] * scale : A(0);
      }
    }
  }

  Status run() {
    return run_range((p.count + kDropBlock - 1) / kDropBlock, p.threads, this, blocks, 0);
  }
};

template <class A>
Status feature_dropout(const FeatureDropout& p) {
  return FeatureDropoutKernel<A>(p).run();
}

}  // namespace GK_ISA
}  // namespace gatkernels
