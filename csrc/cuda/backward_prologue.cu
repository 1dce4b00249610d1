// What a backward computes per destination before it turns to the edges.
#include "backward.h"
#include "separable.h"

namespace gatkernels {
namespace cuda {
namespace {

// The attention output's own gradient joins delta: sum_e alpha_e m_e d alpha_e, over all edges and
// over those of positive score.
template <class A, class Lane>
GK_DEVICE void add_grad_alpha(const Prologue& call, const Lane& lane, int64_t row, A& all,
                              A& positive) {
  const int head = lane.first_head + lane.head;
  const int64_t heads = call.layout.heads;
  const int64_t begin = __ldg(call.csr.rowptr + row), end = __ldg(call.csr.rowptr + row + 1);
  const GatScorer<A> scorer(call.scores, call.layout.heads, head);
  const A score_dst = call.grad_dst.data ? scorer.dst_of(row) : A(0);
  for (int64_t e = begin + lane.first_edge; e < end; e += lane.edges_apart) {
    const int32_t id = __ldg(call.csr.eid + e);
    const int64_t at = int64_t(id) * heads + head;
    const A share = __ldg(static_cast<const A*>(call.alpha) + at) *
                    __ldg(static_cast<const A*>(call.grad_alpha) + at);
    all += share;
    if (!call.grad_dst.data) continue;
    if (scorer.score(scorer.src_of(__ldg(call.csr.col + e)) + score_dst, id) > A(0)) {
      positive += share;
    }
  }
}

// A block has a tile of heads and kWarps warps, a group of lanes a row, a lane K vectors of it.
template <class T, int V, int K>
GK_KERNEL(kThreads)
prologue(GK_CONSTANT Prologue call) {
  using A = Sum<T>;
  Lane<V, K> lane(call.layout);
  const int64_t row = int64_t(blockIdx.x) * lane.groups() + lane.group;
  const bool there = row < call.csr.rows;
  const int64_t heads = call.layout.heads;
  const int width = call.layout.width();
  const Rows<T, V, K> grads(call.grad), outs(call.out, width);
  const Rows<A, V, K> outs_pos(call.out_pos, width);
  Lane<V, K> edge_lane = lane.in_rows_of(call.features);
  const Rows<T, V, K> edge_grads(call.edge_grad), edge_outs(call.edge_out, edge_lane.width());
  A delta[K] = {}, positive[K] = {};
  for (int part = 0; part < call.layout.parts; ++part) {
    lane.enter(part);
    A grad[K][V], out[K][V];
    grads.get(row, there, lane, grad);
    outs.get(row, there, lane, out);
    GK_UNROLL
    for (int k = 0; k < K; ++k) delta[k] += dot(grad[k], out[k]);
    if (call.features > 0) {
      edge_lane.enter(part);
      edge_grads.get(row, there, edge_lane, grad);
      edge_outs.get(row, there, edge_lane, out);
      GK_UNROLL
      for (int k = 0; k < K; ++k) delta[k] += dot(grad[k], out[k]);
    }
    if (!call.grad_dst.data) continue;
    outs_pos.get(row, there, lane, out);
    GK_UNROLL
    for (int k = 0; k < K; ++k) positive[k] += dot(grad[k], out[k]);
  }
  lane.add_channels(delta);
  lane.add_channels(positive);
  if (call.grad_alpha) {
    A all = A(0), some = A(0);
    if (there && lane.scores()) add_grad_alpha(call, lane, row, all, some);
    all = lane.add_edges(all);
    some = lane.add_edges(some);
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      delta[k] += lane.from_lane(all, lane.head_of(k));
      positive[k] += lane.from_lane(some, lane.head_of(k));
    }
  }
  GK_UNROLL
  for (int k = 0; k < K; ++k) {
    if (!there || !lane.leads(k)) continue;
    const int head = lane.first_head + lane.head_of(k);
    const A* stats = static_cast<const A*>(call.stats) + row * 3 * heads + head;
    A* fields = static_cast<A*>(call.fields) + (row * heads + head) * 4;
    fields[kTop] = stats[0];
    fields[kInverse] = stats[heads];
    fields[kDelta] = delta[k];
    if (!call.grad_dst.data) continue;
    fields[kScoreDst] =
        static_cast<const A*>(call.scores.dst.data)[row * call.scores.dst.stride + head];
    A* grad_dst = static_cast<A*>(call.grad_dst.data) + row * call.grad_dst.stride + head;
    const bool used = stats[heads] != A(0);  // without edges, dO may not be finite
    const A slope = A(call.scores.negative_slope);
    *grad_dst = used ? (A(1) - slope) * (positive[k] - delta[k] * stats[2 * heads]) : A(0);
  }
}

}  // namespace

template <class T>
cudaError_t backward_prologue(const Shape& shape, bool rows_aligned, Prologue call,
                              cudaStream_t stream) {
  Shape widest = shape;
  if (call.features > widest.channels) widest.channels = call.features;
  const auto run = [&](auto v, auto k) {
    call.layout = make_layout(widest, v, k);
    call.layout.channels = int(shape.channels);
    const int groups = kThreads >> call.layout.log2_group;
    const int64_t blocks = (call.csr.rows + groups - 1) / groups;
    return launch(prologue<T, v(), k()>, blocks, call.layout.tiles, kThreads, 0, stream, call);
  };
  return with_vectors<T, kShare>(widest, rows_aligned, shape.heads, run);
}

template cudaError_t backward_prologue<GK_TYPE>(const Shape&, bool, Prologue, cudaStream_t);

}  // namespace cuda
}  // namespace gatkernels
