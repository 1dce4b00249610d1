// Partial results of a hub's chunks become one: a block of warps, each adding up a run of chunks,
// whose sums the first warp then adds up, always in the same order.
#pragma once
#include "rows.h"

namespace gatkernels {
namespace cuda {

constexpr int kMergeWarps = 8;

// State has get_partial (through `get`), absorb, and each, which visits its values. True for the
// warp that ends up with the whole.
template <class A, class State, class Get>
GK_DEVICE bool merge_chunks(State& state, int begin, int end, A* shared, Get get) {
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int run = (end - begin + kMergeWarps - 1) / kMergeWarps;
  const int last = at_most(begin + (warp + 1) * run, end);
  for (int chunk = begin + warp * run; chunk < last; ++chunk) {
    State other;
    get(other, chunk);
    state.absorb(other);
  }
  A* mine = shared + warp * State::kValues * kWarp + lane;
  state.each([&](A& value, int i) { mine[i * kWarp] = value; });
  __syncthreads();
  for (int from = 1; warp == 0 && from < kMergeWarps; ++from) {
    State other;
    const A* theirs = shared + from * State::kValues * kWarp + lane;
    other.each([&](A& value, int i) { value = theirs[i * kWarp]; });
    state.absorb(other);
  }
  __syncthreads();  // before the next part's values
  return warp == 0;
}

// One block per hub and tile.
template <class State, class A, class Call>
cudaError_t launch_merge(void (*kernel)(Call), const Call& call, cudaStream_t stream) {
  constexpr int64_t kShared = int64_t(kMergeWarps) * State::kValues * kWarp * sizeof(A);
  static_assert(kShared <= 48 << 10, "what every GPU gives a block");
  return launch(kernel, call.schedule.hubs, call.layout.tiles, kMergeWarps * kWarp, kShared, stream,
                call);
}

}  // namespace cuda
}  // namespace gatkernels
