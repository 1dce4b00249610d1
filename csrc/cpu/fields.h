// Fields of a destination, 4 H apart: row maximum, 1 / sum and delta, which the backward of scores
// that are read from rows finds of each edge's destination.
#pragma once
#include "heads.h"

namespace gatkernels {
namespace GK_ISA {

// delta[h] += sum over the edges into i of alpha grad_alpha, where there is such a gradient
template <class A>
static inline void add_alpha_gradients(const Edges& csr, int64_t i, int heads, const void* alpha,
                                       const void* grad_alpha, A* delta) {
  if (grad_alpha == nullptr) return;
  for (int64_t edge = csr.rowptr[i]; edge < csr.rowptr[i + 1]; ++edge) {
    const int64_t at = int64_t(csr.eid[edge]) * heads;
    for (int h = 0; h < heads; ++h) {
      delta[h] += static_cast<const A*>(alpha)[at + h] * static_cast<const A*>(grad_alpha)[at + h];
    }
  }
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
