// What a launch needs besides the contract's parameters.
#pragma once
#include "../core/host_device.h"
#include "../core/params.h"
#include "../core/philox.h"

#ifdef GK_SIMT
#include "simt.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace gatkernels {
namespace cuda {

struct Plan {
  Schedule schedule;    // of the edges' rows
  void* partials;       // of hubs: [chunks + slices, width]
  void* edge_terms;     // [edges, H, 2], where dot products have a gradient of edge features
  void* att_parts;      // [kAttParts, vectors, H * C], where a backward has attention vectors
  cudaStream_t stream;  // torch's current one
  int64_t most_heads;   // of a tile, in kernels that gather rows
};

// Chunks that are merged before the whole of a hub is, where a hub can have twice as many.
constexpr int64_t kSlice = 32;
GK_HOST_DEVICE inline bool in_slices(const Schedule& schedule) {
  return schedule.chunks >= 2 * kSlice;
}

// Blocks that the gradient of att is summed in, however many a GPU runs at a time: whole waves of
// 2, 3 and 4 blocks on each of 132 multiprocessors, and few enough that their last round is short.
constexpr int64_t kAttParts = 1584;

}  // namespace cuda
}  // namespace gatkernels
