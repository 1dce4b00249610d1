// GAT's scores from features, a group of lanes to a row, and the gradients that come back through
// them: blocks go through the rows in strides, each with its own sums for att.
#include "att_parts.h"
#include "backward.h"
#include "kernels.h"

namespace gatkernels {
namespace cuda {
namespace {

struct Call {
  Layout layout;
  int64_t rows;
  Matrix x;  // [rows, H * C]
  const void* att_src;
  const void* att_dst;  // or null
  Matrix src;           // [rows, H]: scores, or their gradients
  Matrix dst;
  Matrix grad_x;    // [rows, H * C], which is added to
  void* att_parts;  // [blocks, 1 or 2, H * C]
};

// A block has a tile of heads and kWarps warps, a group of lanes a row, a lane K vectors of it.
template <class T, int V, int K>
GK_KERNEL(kThreads)
scores(GK_CONSTANT Call call) {
  using A = Sum<T>;
  Lane<V, K> lane(call.layout);
  const int64_t row = int64_t(blockIdx.x) * lane.groups() + lane.group;
  const bool there = row < call.rows;
  const Rows<T, V, K> rows(call.x);
  const Rows<A, V, K> att_src(call.att_src, 0), att_dst(call.att_dst, 0);
  A dots[2][K] = {};
  for (int part = 0; part < call.layout.parts; ++part) {
    lane.enter(part);
    A x[K][V], att[K][V];
    rows.get(row, there, lane, x);
    att_src.get(0, true, lane, att);
    GK_UNROLL
    for (int k = 0; k < K; ++k) dots[0][k] += dot(x[k], att[k]);
    att_dst.get(0, call.att_dst != nullptr, lane, att);
    GK_UNROLL
    for (int k = 0; k < K; ++k) dots[1][k] += dot(x[k], att[k]);
  }
  lane.add_channels_of_each(dots);
  GK_UNROLL
  for (int k = 0; k < K; ++k) {
    if (!there || !lane.leads(k)) continue;
    const int head = lane.first_head + lane.head_of(k);
    static_cast<A*>(call.src.data)[row * call.src.stride + head] = dots[0][k];
    if (call.dst.data) static_cast<A*>(call.dst.data)[row * call.dst.stride + head] = dots[1][k];
  }
}

// Sums over rows, of grad_src x and of grad_dst x.
template <class T, int V, int K>
using AttRows = RowSums<T, V, K, 2>;

// A block has a tile of heads, rows in strides, and sums for att of its own; a group of lanes has a
// row at a time, a lane K vectors of it.
template <class T, int V, int K>
GK_KERNEL(kThreads)
gradients(GK_CONSTANT Call call) {
  using A = Sum<T>;
  GK_SHARED_MEMORY(shared);
  Lane<V, K> lane(call.layout);
  const Rows<T, V, K> rows(call.x), grads(call.grad_x);
  const bool both = call.att_dst != nullptr;
  const int width = call.layout.width();
  for (int part = 0; part < call.layout.parts; ++part) {
    lane.enter(part);
    A att_src[K][V], att_dst[K][V];
    Rows<A, V, K>(call.att_src, 0).get(0, true, lane, att_src);
    Rows<A, V, K>(call.att_dst, 0).get(0, both, lane, att_dst);
    AttRows<T, V, K> sums;
    for (int64_t row = int64_t(blockIdx.x) * lane.groups() + lane.group; row < call.rows;
         row += int64_t(gridDim.x) * lane.groups()) {
      A x[K][V], grad[K][V];
      rows.get(row, true, lane, x);
      grads.get(row, true, lane, grad);
      GK_UNROLL
      for (int k = 0; k < K; ++k) {
        if (!lane.has(k)) continue;
        const int head = lane.first_head + lane.head_of(k);
        const A src = __ldg(static_cast<const A*>(call.src.data) + row * call.src.stride + head);
        const A dst =
            both ? __ldg(static_cast<const A*>(call.dst.data) + row * call.dst.stride + head)
                 : A(0);
        // a node without edges has no gradient, and its features may not be finite
        const bool used = src != A(0) || dst != A(0);
        GK_UNROLL
        for (int v = 0; v < V; ++v) {
          grad[k][v] += src * att_src[k][v] + dst * att_dst[k][v];
          sums.of[0][k][v] += used ? src * x[k][v] : A(0);
          sums.of[1][k][v] += used ? dst * x[k][v] : A(0);
        }
      }
      put_row<T, V, K>(static_cast<T*>(call.grad_x.data) + row * call.grad_x.stride, lane, grad);
    }
    add_block(sums, lane, reinterpret_cast<A*>(shared));
    if (int(threadIdx.x) < lane.group_lanes) {
      A* to = static_cast<A*>(call.att_parts) + int64_t(blockIdx.x) * (both ? 2 : 1) * width;
      put_row<A, V, K>(to, lane, sums.of[0]);
      if (both) put_row<A, V, K>(to + width, lane, sums.of[1]);
    }
    __syncthreads();
  }
}

}  // namespace

template <class T>
cudaError_t node_scores(const NodeScores& p, const Plan& plan) {
  const auto run = [&](auto v, auto k) {
    Call call{};
    call.layout = make_layout(p.shape, v, k);
    call.rows = p.rows;
    call.x = p.x;
    call.att_src = p.att_src;
    call.att_dst = p.att_dst;
    call.src = {p.score_src, p.shape.heads};
    call.dst = {p.score_dst, p.shape.heads};
    const int groups = kThreads >> call.layout.log2_group;
    return launch(scores<T, v(), k()>, (p.rows + groups - 1) / groups, call.layout.tiles, kThreads,
                  0, plan.stream, call);
  };
  const bool rows_aligned = aligned<T>(p.x) && aligned(p.att_src, 0) && aligned(p.att_dst, 0);
  return with_vectors<T, kShare>(p.shape, rows_aligned, p.shape.heads, run);
}

template <class T>
cudaError_t node_score_gradients(const GatSources& p, const Plan& plan) {
  using A = Sum<T>;
  const auto run = [&](auto v, auto k) {
    constexpr int V = v(), K = k();
    Call call{};
    call.layout = make_layout(p.shape, V, K);
    call.rows = p.csc.rows;
    call.x = p.x;
    call.att_src = p.att_src;
    call.att_dst = p.att_dst;
    call.src = p.grad_src;
    call.dst = p.grad_dst;
    call.grad_x = p.grad_x;
    call.att_parts = plan.att_parts;
    const int groups = kThreads >> call.layout.log2_group;
    const int64_t wanted = (call.rows + groups - 1) / groups;
    const int64_t blocks = wanted < kAttParts ? wanted : kAttParts;
    const cudaError_t error = launch(gradients<T, V, K>, blocks, call.layout.tiles, kThreads,
                                     block_table<AttRows<T, V, K>>(), plan.stream, call);
    if (error != cudaSuccess) return error;
    return sum_parts<A>(plan, p.grad_att, blocks, (p.att_dst ? 2 : 1) * call.layout.width());
  };
  const bool rows_aligned =
      aligned<T>(p.x) && aligned<T>(p.grad_x) && aligned(p.att_src, 0) && aligned(p.att_dst, 0);
  return with_vectors<T, kShare2>(p.shape, rows_aligned, p.shape.heads, run);
}

template cudaError_t node_scores<GK_TYPE>(const NodeScores&, const Plan&);
template cudaError_t node_score_gradients<GK_TYPE>(const GatSources&, const Plan&);

}  // namespace cuda
}  // namespace gatkernels
