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

template <class T, int V, int K>
GK_KERNEL(kMergeWarps* kWarp)
merge(GK_CONSTANT Call call) {
  using A = Sum<T>;
  GK_SHARED_MEMORY(shared);
  const Partials partials(call.schedule, blockIdx.x);
  if (partials.count() == 0) return;
  Lane<V, K> lane(call.layout);
  const int64_t row = partials.row;
  for (int part = 0; part < call.layout.parts; ++part) {
    lane.enter(part);
    RowState<T, V, K> state;
    const auto place = [&](int i) { return partials.place(i); };
    const bool whole =
        merge_partials(state, call, lane, reinterpret_cast<A*>(shared), partials.count(), place);
    if (whole && int(threadIdx.x) < lane.group_lanes) state.finish(call.to, row, lane, part, false);
  }
}

}  // namespace

template <class T>
cudaError_t merge_forward(const Shape& shape, bool rows_aligned, const Plan& plan,
                          const ForwardResults& to) {
  const auto run = [&](auto v, auto k) {
    const Call call{plan.csr, make_layout(shape, v, k), to};
    return launch_merge<RowState<T, v(), k()>>(merge<T, v(), k()>, call, plan.stream);
  };
  return with_vectors<T, kShare>(shape, rows_aligned, shape.heads, run);
}

template cudaError_t merge_forward<GK_TYPE>(const Shape&, bool, const Plan&,
                                            const ForwardResults&);

}  // namespace cuda
}  // namespace gatkernels
