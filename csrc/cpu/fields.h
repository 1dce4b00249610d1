// Fields of a destination, 4 H apart: row maximum, 1 / sum and delta, which the backward of scores
// that are read from rows finds of each edge's destination.
#pragma once
#include "heads.h"

namespace gatkernels {
namespace GK_ISA {

// total[h] += sum of alpha grad_alpha over the edges into i that are counted(edge, h), where there
// is such a gradient. In double: the total may be far larger than the terms of many edges.
template <class A, class Counted>
static inline void add_alpha_gradients(const Edges& csr, int64_t i, int heads, const void* alpha,
                                       const void* grad_alpha, A* total, const Counted& counted) {
  if (grad_alpha == nullptr) return;
  constexpr int kHeads = 8;
  for (int first = 0; first < heads; first += kHeads) {
    const int count = heads - first < kHeads ? heads - first : kHeads;
    double sums[kHeads] = {};
    for (int64_t edge = csr.rowptr[i]; edge < csr.rowptr[i + 1]; ++edge) {
      const int64_t at = int64_t(csr.eid[edge]) * heads + first;
      const A *weight = static_cast<const A*>(alpha) + at,
              *grad = static_cast<const A*>(grad_alpha) + at;
      for (int k = 0; k < count; ++k) {
        if (counted(edge, first + k)) sums[k] += double(weight[k]) * double(grad[k]);
      }
    }
    for (int k = 0; k < count; ++k) total[first + k] += A(sums[k]);
  }
}
template <class A>
static inline void add_alpha_gradients(const Edges& csr, int64_t i, int heads, const void* alpha,
                                       const void* grad_alpha, A* total) {
  add_alpha_gradients(csr, i, heads, alpha, grad_alpha, total, [](int64_t, int) { return true; });
}

template <class A>
static inline void put_fields(int64_t i, int heads, const void* stats, const A* delta,
                              void* fields) {
  A* field = static_cast<A*>(fields) + i * 4 * heads;
  std::memcpy(field, static_cast<const A*>(stats) + i * 3 * heads, size_t(2 * heads) * sizeof(A));
  std::memcpy(field + 2 * heads, delta, size_t(heads) * sizeof(A));
}

// Asks for the fields of an edge some way ahead of `col`.
template <class A>
GK_INLINE void prefetch_fields(Fields<A> fields, int heads, const int32_t* col,
                               const int32_t* col_end) {
  const int32_t* ahead = col + kPrefetch < col_end ? col + kPrefetch : col;
  const A* next = fields.data + *ahead * fields.stride;
  for (int64_t k = 0; k < 3 * heads; k += 64 / int64_t(sizeof(A))) __builtin_prefetch(next + k);
}

}  // namespace GK_ISA
}  // namespace gatkernels
