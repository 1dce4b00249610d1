// What a launch needs besides the contract's parameters.
#pragma once
#include "../core/params.h"

#ifdef GK_SIMT
#include "simt.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace gatkernels {
namespace cuda {

struct Plan {
  Schedule csr;
  Schedule csc;         // backward only
  void* partials;       // partial results of hubs
  void* att_parts;      // [kAttParts, H * C], GATv2's backward only
  cudaStream_t stream;  // torch's current one
};

// Blocks that the gradient of att is summed in; the same on every GPU, so that its bits are too.
constexpr int64_t kAttParts = 512;

}  // namespace cuda
}  // namespace gatkernels
