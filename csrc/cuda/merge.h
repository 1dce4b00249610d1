// Partial results of a hub's chunks become one. Where a hub can have many, in two steps: every
// kSlice places of chunks that one hub fills, each by a block of its own, then what this leaves of
// each hub, by one block. Which results are added up, and in what order, depends on the graph
// alone.
#pragma once
#include "launch.h"
#include "rows.h"

namespace gatkernels {
namespace cuda {

constexpr int kMergeWarps = 8;

// The partial results of a hub, in the order of its edges: none but for its first chunk.
struct Partials {
  int64_t row;
  int begin, end;     // its chunks
  int first, slices;  // those that are merged already
  int64_t after;      // the place of the first slice's result

  GK_DEVICE Partials(const Schedule& schedule, int64_t chunk)
      : row(__ldg(schedule.chunk_row + chunk)),
        begin(int(chunk)),
        end(begin),
        first(0),
        slices(0),
        after(schedule.chunks) {
    if (row < 0 || first_chunk(schedule, row) != chunk) return;
    end = int(__ldg(schedule.chunk_end + row));
    if (!in_slices(schedule)) return;
    first = (begin + kSlice - 1) / kSlice;
    slices = end / kSlice - first;
    if (slices < 0) slices = 0;
  }
  GK_DEVICE int count() const { return end - begin - slices * (kSlice - 1); }
  GK_DEVICE int64_t place(int i) const {
    const int before = first * kSlice - begin;  // chunks
    if (slices == 0 || i < before) return begin + i;
    if (i < before + slices) return after + first + i - before;
    return begin + i + slices * (kSlice - 1);
  }
};
// Those of a slice.
struct Slice {
  int64_t first;

  GK_DEVICE int count() const { return kSlice; }
  GK_DEVICE int64_t place(int i) const { return first + i; }
};

// State has get_partial, absorb, and each, which visits its values. Each warp adds up a run of the
// partial results, the first warp then those sums: true for this warp, which ends up with the
// whole.
template <class State, class Call, class Lane, class Partials>
GK_DEVICE bool merge_partials(State& state, const Call& call, const Lane& lane,
                              unsigned char* shared, const Partials& partials) {
  using A = typename State::A;
  const int count = partials.count();
  const int warp = int(threadIdx.x) / kWarp, thread = int(threadIdx.x) % kWarp;
  const int run = (count + kMergeWarps - 1) / kMergeWarps;
  const int last = at_most((warp + 1) * run, count);
  for (int i = warp * run; i < last; ++i) {
    State other;
    other.get_partial(call, lane, partials.place(i));
    state.absorb(other);
  }
  A* table = reinterpret_cast<A*>(shared);
  A* mine = table + warp * State::kValues * kWarp + thread;
  state.each([&](A& value, int i) { mine[i * kWarp] = value; });
  __syncthreads();
  for (int from = 1; warp == 0 && from < kMergeWarps; ++from) {
    State other;
    const A* theirs = table + from * State::kValues * kWarp + thread;
    other.each([&](A& value, int i) { value = theirs[i * kWarp]; });
    state.absorb(other);
  }
  __syncthreads();  // before the next part's values
  return warp == 0;
}

// A block has a slice, if one hub fills it, and a tile of heads; a warp has a run of the slice's
// partial results, a lane K vectors of them.
template <class State, class Call>
GK_KERNEL(kMergeWarps* kWarp)
merge_slices(GK_CONSTANT Call call) {
  GK_SHARED_MEMORY(shared);
  const int64_t first = int64_t(blockIdx.x) * kSlice;
  const int32_t row = __ldg(call.schedule.chunk_row + first);
  if (row < 0 || row != __ldg(call.schedule.chunk_row + first + kSlice - 1)) return;
  typename State::Lanes lane(call.layout);
  for (int part = 0; part < call.layout.parts; ++part) {
    lane.enter(part);
    State state;
    const bool whole = merge_partials(state, call, lane, shared, Slice{first});
    if (whole && int(threadIdx.x) < lane.group_lanes) {
      state.put_partial(call, lane, part, call.schedule.chunks + int64_t(blockIdx.x));
    }
  }
}

// A kernel's body that merges hubs. A block has the hub of its chunk, if that is the first one, and
// a tile of heads; a warp has a run of its partial results, a lane K vectors of them. All come to
// finish(state, lane, row, part, writes), which the lanes that have the whole are to write.
template <class State, class Call, class Finish>
GK_DEVICE void merge_hub(const Call& call, unsigned char* shared, Finish finish) {
  const Partials partials(call.schedule, blockIdx.x);
  if (partials.count() == 0) return;
  typename State::Lanes lane(call.layout);
  for (int part = 0; part < call.layout.parts; ++part) {
    lane.enter(part);
    State state;
    const bool whole = merge_partials(state, call, lane, shared, partials);
    finish(state, lane, partials.row, part, whole && int(threadIdx.x) < lane.group_lanes);
  }
}

// One block per chunk and tile, after those of slices: that of a hub's first chunk merges them all.
template <class State, class Call>
cudaError_t launch_merge(void (*kernel)(Call), const Call& call, cudaStream_t stream) {
  constexpr int64_t kShared =
      int64_t(kMergeWarps) * State::kValues * kWarp * sizeof(typename State::A);
  static_assert(kShared <= 48 << 10, "what every GPU gives a block");
  const auto merge = [&](void (*one)(Call), int64_t blocks) {
    return launch(one, blocks, call.layout.tiles, kMergeWarps * kWarp, kShared, stream, call);
  };
  if (call.schedule.chunks == 0) return cudaSuccess;
  if (in_slices(call.schedule)) {
    const cudaError_t error = merge(merge_slices<State, Call>, call.schedule.chunks / kSlice);
    if (error != cudaSuccess) return error;
  }
  return merge(kernel, call.schedule.chunks);
}

}  // namespace cuda
}  // namespace gatkernels
