// The table of kernels of the instruction set GK_ISA for features stored as GK_TYPE.
#pragma once
#include "dot_backward.h"
#include "features.h"
#include "kernels.h"
#include "rowwise_backward.h"
#include "separable_backward.h"
#ifdef GK_TYPE_OF_SUMS
#include "head_loops.h"
#endif

namespace gatkernels {
namespace GK_ISA {

#ifdef GK_TYPE_OF_SUMS
template const HeadLoops<GK_TYPE>& head_loops<GK_TYPE>(int64_t);
#endif

template <>
Kernels kernels<GK_TYPE>() {
  using T = GK_TYPE;
  using A = std::conditional_t<std::is_same_v<T, double>, double, float>;  // the type of sums
  Kernels table{};
  table.node_scores = node_scores<T, A>;
  table.gat_forward = gat_forward<T, A>;
  table.gat_alpha = gat_alpha<T, A>;
  table.gat_destinations = gat_destinations<T, A>;
  table.gat_sources = gat_sources<T, A>;
  table.rowwise_forward = rowwise_forward<T, A>;
  table.rowwise_alpha = rowwise_alpha<T, A>;
  table.rowwise_destinations = rowwise_destinations<T, A>;
  table.rowwise_sources = rowwise_sources<T, A>;
  table.dot_forward = dot_forward<T, A>;
  table.dot_alpha = dot_alpha<T, A>;
  table.dot_destinations = dot_destinations<T, A>;
  table.dot_sources = dot_sources<T, A>;
#ifdef GK_TYPE_OF_SUMS
  table.sparse_product = sparse_product<T>;
  table.sparse_transposed_product = sparse_transposed_product<T>;
  table.feature_dropout = feature_dropout<T>;
#endif
  return table;
}

}  // namespace GK_ISA
}  // namespace gatkernels
