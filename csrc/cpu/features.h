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
      each_tile<V>(p.width,
                   [&](auto vectors, int64_t f) { tile<vectors.value>(col, value, n, f, sum); });
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

  void fill(int64_t begin, int64_t end, A* sum) const {
    for (int64_t f = 0; f < p.width; ++f) sum[f] = A(0);
    add(begin, end, sum);
  }
  void merge(int64_t row, const A* part, int64_t count) const {
    A* sum = out(row);
    for (int64_t f = 0; f < p.width; ++f) {
      A total = A(0);
      for (int64_t k = 0; k < count; ++k) total += part[k * p.width + f];
      sum[f] = total;
    }
  }

  Status run() const {
    const auto rows = [&](int64_t, int64_t begin, int64_t end, char*) {
      for (int64_t row = begin; row < end; ++row) fill(p.rowptr[row], p.rowptr[row + 1], out(row));
    };
    const auto chunk = [&](int64_t, int64_t begin, int64_t end, char* partial, char*) {
      fill(begin, end, reinterpret_cast<A*>(partial));
    };
    const auto merged = [&](int64_t row, int64_t, char* partials, int64_t count, char*) {
      merge(row, reinterpret_cast<const A*>(partials), count);
    };
    return run_rows(p.rowptr, p.rows, p.threads,
                    {rows, chunk, merged, 0, size_t(p.width) * sizeof(A)});
  }
};

template <class A>
Status sparse_product(const SparseProduct& p) {
  return SparseProductKernel<A>(p).run();
}

constexpr int kParts = 8;  // of the rows of S, whatever the number of threads

// out = S^T x: S and x are read once, in order; what is written at random is a sum that stays in
// the cache, one for each part of the rows.
template <class A>
struct SparseTransposedProductKernel {
  using V = Vec<A>;
  const SparseTransposedProduct& p;
  const A* values;
  const A* x;
  A* out;
  A* sums = nullptr;  // [kParts - 1, columns, width]: the first part's is out

  explicit SparseTransposedProductKernel(const SparseTransposedProduct& params)
      : p(params),
        values(static_cast<const A*>(params.values)),
        x(static_cast<const A*>(params.x.data)),
        out(static_cast<A*>(params.out)) {}

  // Adds value[e] * row to the sum of col[e], over one tile of kN vectors.
  template <int kN>
  void tile(const int32_t* col, const A* value, int n, const A* row, int64_t f, A* sum) const {
    constexpr int kWidth = V::kWidth, last = (kN - 1) * kWidth;
    const int64_t left = p.width - f - last;
    const int tail = left < kWidth ? int(left) : kWidth;
    const int64_t width = p.width;  // here, as stores might change p
    V from[kN];
    for (int k = 0; k < kN; ++k) {
      from[k] = V::load(row + f + k * kWidth, k < kN - 1 ? kWidth : tail);
    }
    for (int e = 0; e < n; ++e) {
      A* to = sum + int64_t(col[e]) * width + f;
      const V v = V::set(value[e]);
      for (int k = 0; k < kN - 1; ++k) {
        V::fma(v, from[k], V::load(to + k * kWidth)).store(to + k * kWidth);
      }
      if (tail == kWidth) {
        V::fma(v, from[kN - 1], V::load(to + last)).store(to + last);
      } else {
        V::fma(v, from[kN - 1], V::load(to + last, tail)).store(to + last, tail);
      }
    }
  }

  // Adds S[row]^T x[row] to sum [columns, width]; zeros are left out.
  void add(int64_t row, A* sum) const {
    int32_t col[kBlock];
    A value[kBlock];
    const int64_t end = p.rowptr[row + 1];
    for (int64_t e = p.rowptr[row]; e < end; e += kBlock) {
      const int64_t stop = e + kBlock < end ? e + kBlock : end;
      int n = 0;
      for (int64_t k = e; k < stop; ++k) {
        const A v = values[k];
        col[n] = p.col[k];
        value[n] = v;
        n += v != A(0);
      }
      each_tile<V>(p.width, [&](auto vectors, int64_t f) {
        tile<vectors.value>(col, value, n, x + row * p.x.stride, f, sum);
      });
    }
  }

  Status run() {
    const int64_t size = p.columns * p.width;
    sums = reinterpret_cast<A*>(allocate(size_t(kParts - 1) * size_t(size) * sizeof(A)));
    if (sums == nullptr) return Status::kOutOfMemory;
    run_parts(p.rowptr, p.rows, kParts, p.threads, [&](int index, int64_t begin, int64_t end) {
      A* sum = index == 0 ? out : sums + (index - 1) * size;
      for (int64_t k = 0; k < size; ++k) sum[k] = A(0);
      for (int64_t row = begin; row < end; ++row) add(row, sum);
    });
    const Status status = run_range(size, p.threads, 0, [&](int64_t begin, int64_t end, char*) {
      for (int64_t k = begin; k < end; ++k) {
        A total = out[k];
        for (int index = 0; index < kParts - 1; ++index) total += sums[index * size + k];
        out[k] = total;
      }
    });
    release(reinterpret_cast<char*>(sums));
    return status;
  }
};

template <class A>
Status sparse_transposed_product(const SparseTransposedProduct& p) {
  return SparseTransposedProductKernel<A>(p).run();
}

constexpr int kLanes = kPhiloxLanes;
constexpr int kDropBlock = 4 * kLanes;  // values drawn for at a time

// Value 64 b + 16 w + l is kept where word w of counter (16 b + l, 0) says so.
template <class A, Activation kActivation>
struct FeatureDropoutKernel {
  using V = Vec<A>;
  const FeatureDropout& p;
  bool drop;
  uint64_t seed;
  uint32_t threshold;
  V scale;

  explicit FeatureDropoutKernel(const FeatureDropout& params)
      : p(params),
        drop(params.dropout.seed != nullptr),
        seed(drop ? uint64_t(*params.dropout.seed) : 0),
        threshold(params.dropout.threshold),
        scale(V::set(A(params.dropout.scale))) {}

  static V activate(V x, V grad) {
    if constexpr (kActivation == Activation::kElu) return V::if_positive(x, x, expm1(x));
    if constexpr (kActivation == Activation::kEluGrad) {
      return V::if_positive(x, grad, grad * exp(x));
    }
    return x;
  }

  void blocks(int64_t begin, int64_t end) const {
    const A* x = static_cast<const A*>(p.x);
    const A* grad = static_cast<const A*>(p.grad);
    A* out = static_cast<A*>(p.out);
    alignas(64) uint32_t word[4][kLanes];
    for (int64_t b = begin; b < end; ++b) {
      if (drop) philox_lanes(seed, uint64_t(b) * kLanes, word);
      for (int k = 0; k < kDropBlock; k += V::kWidth) {
        const int64_t at = b * kDropBlock + k, left = p.count - at;
        if (left <= 0) break;
        const int lanes = left < V::kWidth ? int(left) : V::kWidth;
        const V other = grad ? V::load(grad + at, lanes) : V::set(A(0));
        V y = activate(V::load(x + at, lanes), other);
        if (drop) y = V::keep(y * scale, word[0] + k, threshold);
        y.store(out + at, lanes);
      }
    }
  }

  Status run() const {
    return run_range((p.count + kDropBlock - 1) / kDropBlock, p.threads, 0,
                     [&](int64_t begin, int64_t end, char*) { blocks(begin, end); });
  }
};

template <class A>
Status feature_dropout(const FeatureDropout& p) {
  switch (p.activation) {
    case Activation::kElu:
      return FeatureDropoutKernel<A, Activation::kElu>(p).run();
    case Activation::kEluGrad:
      return FeatureDropoutKernel<A, Activation::kEluGrad>(p).run();
    default:
      return FeatureDropoutKernel<A, Activation::kNone>(p).run();
  }
}

}  // namespace GK_ISA
}  // namespace gatkernels
