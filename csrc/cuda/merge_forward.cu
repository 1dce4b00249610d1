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
  GK_SHARED_MEMORY(shared);
  using State = RowState<T, V, K>;
  merge_hub<State>(call, shared, [&](State& state, auto& lane, int64_t row, int part, bool writes) {
    if (writes) state.finish(call.to, row, lane, part, false);
  });
}

}  // namespace

template <class T>
cudaError_t merge_forward(const Shape& shape, bool rows_aligned, const Plan& plan,
                          const ForwardResults& to) {
  const auto run = [&](auto v, auto k) {
    Call call{};
    call.schedule = plan.schedule;
    call.layout = make_layout(shape, v, k);
    call.to = to;
    return launch_merge<RowState<T, v(), k()>>(merge<T, v(), k()>, call, plan.stream);
  };
  return with_vectors<T, kShare>(shape, rows_aligned, shape.heads, run);
}

template cudaError_t merge_forward<GK_TYPE>(const Shape&, bool, const Plan&, const ForwardResults&);

}  // namespace cuda
}  // namespace gatkernels
