// The table of kernels of the instruction set GK_ISA.
#pragma once
#include "features.h"
#include "gatv2_backward.h"
#include "kernels.h"

namespace gatkernels {
namespace GK_ISA {

// Calls run(storage, accumulator) with values of the C++ types of a dtype.
template <class Run>
static Status with_types(DType dtype, Run run) {
  switch (dtype) {
    case DType::kFloat32:
      return run(float(), float());
    case DType::kFloat64:
      return run(double(), double());
    case DType::kBFloat16:
      return run(BFloat16(), float());
    case DType::kFloat16:
      return run(Half(), float());
  }
  return Status::kUnsupported;
}

static Status gat_forward_of(const GatForward& p, const AlphaOut* to) {
  return with_types(p.shape.dtype,
                    [&](auto t, auto a) { return gat_forward<decltype(t), decltype(a)>(p, to); });
}
static Status gat_backward_of(const GatBackward& p) {
  return with_types(p.shape.dtype,
                    [&](auto t, auto a) { return gat_backward<decltype(t), decltype(a)>(p); });
}
static Status gatv2_forward_of(const Gatv2Forward& p, const AlphaOut* to) {
  return with_types(p.shape.dtype,
                    [&](auto t, auto a) { return gatv2_forward<decltype(t), decltype(a)>(p, to); });
}
static Status gatv2_backward_of(const Gatv2Backward& p) {
  return with_types(p.shape.dtype,
                    [&](auto t, auto a) { return gatv2_backward<decltype(t), decltype(a)>(p); });
}

static Status sparse_product_of(const SparseProduct& p) {
  if (p.dtype == DType::kFloat32) return sparse_product<float>(p);
  return p.dtype == DType::kFloat64 ? sparse_product<double>(p) : Status::kUnsupported;
}
static Status sparse_transposed_product_of(const SparseTransposedProduct& p) {
  if (p.dtype == DType::kFloat32) return sparse_transposed_product<float>(p);
  return p.dtype == DType::kFloat64 ? sparse_transposed_product<double>(p) : Status::kUnsupported;
}
static Status feature_dropout_of(const FeatureDropout& p) {
  if (p.dtype == DType::kFloat32) return feature_dropout<float>(p);
  return p.dtype == DType::kFloat64 ? feature_dropout<double>(p) : Status::kUnsupported;
}

static Kernels table(const char* isa) {
  return {isa,
          gat_forward_of,
          gat_backward_of,
          gatv2_forward_of,
          gatv2_backward_of,
          sparse_product_of,
          sparse_transposed_product_of,
          feature_dropout_of};
}

}  // namespace GK_ISA
}  // namespace gatkernels
