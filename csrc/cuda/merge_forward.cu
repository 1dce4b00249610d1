// The rows of hubs, from the partial results of their chunks, for both attentions.
#include "forward.h"
#include "merge.h"

namespace gatkernels {
namespace cuda {
namespace {

struct Call {
  Schedule schedule;
  Layout layout;
  ForwardResults to;
};

// A block has the hub of its chunk, if that is the first one, and a tile of heads; a warp has a run
// of its partial results, a lane K vectors of them.
template <class T, int V, int K>
GK_KERNEL(kMergeWarps* kWarp)
merge(GK_CONSTANT Call call) {
  GK_SHARED_MEMORY(shared);
  const Partials partials(call.schedule, blockIdx.x);
  if (partials.count() == 0) return;
  Lane<V, K> lane(call.layout);
  for (int part = 0; part < call.layout.parts; ++part) {
    lane.enter(part);
    RowState<T, V, K> state;
    const bool whole = merge_partials(state, call, lane, shared, partials);
    if (!whole || int(threadIdx.x) >= lane.group_lanes) continue;
    state.finish(call.to, partials.row, lane, part, false);
  }
}

}  // namespace

template <class T>
cudaError_t merge_forward(const Shape& shape, bool rows_aligned, const Plan& plan,
                          const ForwardResults& to) {
  const auto run = [&](auto v, auto k) {
    Call call{};
    call.schedule = plan.csr;
    call.layout = make_layout(shape, v, k);
    call.to = to;
    return launch_merge<RowState<T, v(), k()>>(merge<T, v(), k()>, call, plan.stream);
  };
  return with_vectors<T, kShare>(shape, rows_aligned, shape.heads, run);
}

template cudaError_t merge_forward<GK_TYPE>(const Shape&, bool, const Plan&, const ForwardResults&);

}  // namespace cuda
}  // namespace gatkernels
