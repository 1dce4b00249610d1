// The table of kernels of the instruction set GK_ISA.
#pragma once
#include "gat_alpha.h"
#include "gat_backward.h"
#include "kernels.h"

namespace gatkernels {
namespace GK_ISA {

static Status forward_of(const GatForward& p) {
  switch (p.shape.dtype) {
    case DType::kFloat32:
      return gat_forward<float, float>(p);
    case DType::kFloat64:
      return gat_forward<double, double>(p);
  }
  return Status::kUnsupported;
}
static Status alpha_of(const GatAlpha& p) {
  switch (p.shape.dtype) {
    case DType::kFloat32:
      return gat_alpha<float>(p);
    case DType::kFloat64:
      return gat_alpha<double>(p);
  }
  return Status::kUnsupported;
}
static Status backward_of(const GatBackward& p) {
  switch (p.shape.dtype) {
    case DType::kFloat32:
      return gat_backward<float, float>(p);
    case DType::kFloat64:
      return gat_backward<double, double>(p);
  }
  return Status::kUnsupported;
}

}  // namespace GK_ISA
}  // namespace gatkernels
