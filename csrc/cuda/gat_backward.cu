// GAT backward: one pass over CSC, by sources.
//
// Walking the edges out of j, only rows of the output's gradient are gathered; x_j enters once per
// row, because sum_e alpha m leaky' <dO_i, x_j> = <sum_e alpha m leaky' dO_i, x_j>.
#include "backward.h"
#include "gat.h"
#include "gather.h"
#include "kernels.h"
#include "merge.h"

namespace gatkernels {
namespace cuda {
namespace {

constexpr int kTables = 2;  // weights, and those of positive scores

struct Call {
  Edges edges;
  Schedule schedule;
  Layout layout;
  GatScores scores;
  Draw dropout;
  Matrix x;     // [Ns, H * C]
  Matrix grad;  // [Nd, H * C]
  const void* fields;
  const void* grad_alpha;  // or null
  void* grad_edge;         // or null
  void* partials;
  Matrix grad_x;    // [Ns, H * C]
  Matrix grad_src;  // [Ns, H]
};

// The row of grad_x, and this part's share of <slope all + (1 - slope) positive, x_j>; x_j of a row
// without edges (not used) may not be finite.
template <class T, int V, int K>
GK_DEVICE void finish_part(const Call& call, int64_t row, bool used, bool writes,
                           const Lane<V, K>& lane, const RowSums<T, V, K>& sums,
                           Sum<T> (&dots)[K]) {
  using A = Sum<T>;
  const A slope = A(call.scores.negative_slope);
  A x[K][V];
  Rows<T, V, K>(call.x).get(row, used, lane, x);
  GK_UNROLL
  for (int k = 0; k < K; ++k) {
    GK_UNROLL
    for (int v = 0; v < V; ++v) {
      dots[k] += (slope * sums.all[k][v] + (A(1) - slope) * sums.positive[k][v]) * x[k][v];
    }
  }
  if (writes) {
    put_row<T, V, K>(static_cast<T*>(call.grad_x.data) + row * call.grad_x.stride, lane, sums.all);
  }
}
// grad_src; every lane of the warp comes here.
template <class A, int V, int K>
GK_DEVICE void finish_row(const Call& call, int64_t row, bool writes, const Lane<V, K>& lane, A sum,
                          A (&dots)[K]) {
  lane.add_channels(dots);
  A* grad_src = static_cast<A*>(call.grad_src.data) + row * call.grad_src.stride + lane.first_head;
  GK_UNROLL
  for (int k = 0; k < K; ++k) {
    const A total = dots[k] + lane.from_lane(sum, lane.head_of(k));
    if (writes && lane.leads(k)) grad_src[lane.head_of(k)] = total;
  }
}

// Blocks on a multiprocessor that registers leave room for without spilling.
template <class T, int V, int K>
constexpr int kBlocks = sizeof(T) == 8 || V * K == 16 ? 1
                        : K > 1                       ? 3
                        : V == 4                      ? 5
                                                      : 4;

template <class T, int V, int K>
GK_KERNEL_BLOCKS(kThreads, (kBlocks<T, V, K>))
backward(GK_CONSTANT Call call) {
  using A = Sum<T>;
  constexpr int U = kGathered<K>;
  GK_SHARED_MEMORY(shared);
  Lane<V, K> lane(call.layout);
  const int64_t first = int64_t(blockIdx.x) * lane.groups();
  const Item item = item_of(call.edges, call.schedule, first + lane.group);
  const int longest = warp_max(item.there ? item.count : -1);
  if (longest < 0) return;
  const Board<A> board(shared, lane, kTables);
  const int head = lane.first_head + lane.head;
  const int64_t all_heads = call.layout.heads;
  const bool ids = call.dropout.seed || call.grad_edge || call.grad_alpha || call.scores.edge;
  const EdgeReader edges(call.edges, item, ids);
  const GatScorer<A> scorer(call.scores, call.layout.heads, head);
  const A score_src = item.there && lane.scores() ? scorer.src_of(item.row) : A(0);
  const A* fields = static_cast<const A*>(call.fields) + 4 * head;
  const A* grad_alpha = static_cast<const A*>(call.grad_alpha);
  A* grad_edge = static_cast<A*>(call.grad_edge);
  const Mask<A> mask(call.dropout);
  const Rows<T, V, K> x(call.x);
  const int place = lane.head * board.pitch;  // of this lane's weights
  const int apart = kScored * lane.edges_apart, start = kScored * lane.first_edge;

  A dots[K] = {}, sum = A(0);
  for (int part = 0; part < call.layout.parts; ++part) {
    lane.enter(part);
    const Source<T, V, K> grads(Rows<T, V, K>(call.grad), lane);
    RowSums<T, V, K> sums;
    A x_row[K][V];
    x.get(item.row, item.there && grad_edge != nullptr, lane, x_row);
    Edge next = edges.get(lane.lane);
    for (int base = 0; base < longest; base += lane.group_lanes) {
      const int n = at_most(item.count - base, lane.group_lanes);
      const int steps = at_most(longest - base, lane.group_lanes);
      board.post(lane, next);
      next = edges.get(base + lane.group_lanes + lane.lane);  // on its way while rows come in
      if (call.dropout.seed) {
        mask.each(lane, board.ids, n, [&](int e, int head, A factor) {
          board.weights[head * board.pitch + e] = factor;
        });
        __syncwarp();
      }

      for (int e = start; e < steps && lane.scores(); e += apart) {
        int32_t node[kScored], id[kScored];
        Fields<A> gathered[kScored];
        A w[kScored], kept[kScored];
        load_plain(board.nodes + e, node);
        load_plain(board.ids + e, id);
        if (call.dropout.seed) load_plain(board.weights + place + e, w);
        GK_UNROLL
        for (int i = 0; i < kScored; ++i) {
          gathered[i] = {};
          if (e + i < n) gathered[i] = load_fields(fields + int64_t(node[i]) * all_heads * 4);
        }
        GK_UNROLL
        for (int i = 0; i < kScored; ++i) {
          const A factor = call.dropout.seed ? w[i] : A(1);
          w[i] = kept[i] = A(0);
          if (e + i >= n) continue;
          const A(&f)[4] = gathered[i].values;
          const A s = scorer.score(score_src + f[kScoreDst], id[i]);
          const A slope = scorer.logit_slope(s);
          const A alpha = exp_below(scorer.logit(s), f[kTop]) * f[kInverse];
          w[i] = alpha * factor;
          if (s > A(0)) kept[i] = w[i];
          const int64_t at = int64_t(id[i]) * all_heads + head;
          A own = -slope * alpha * f[kDelta];  // what does not come from rows
          if (grad_alpha) own += slope * w[i] * __ldg(grad_alpha + at);
          if (grad_edge && part == 0) grad_edge[at] = own;
          sums.sum += own;
        }
        store_plain(board.weights + place + e, w);
        store_plain(board.kept + place + e, kept);
      }
      __syncwarp();

      Raw<T, V> rows[U][K];
      const int whole = lane.least(n);
      int e = 0;
      for (; e + U <= whole && !grad_edge; e += U) {
        grads.template load<true>(board.nodes, e, n, rows);
        add_rows(rows, board, lane, e, true, sums.all, sums.positive);
      }
      for (; e < steps; e += U) {
        grads.load(board.nodes, e, n, rows);
        add_rows(rows, board, lane, e, true, sums.all, sums.positive);
        if (!grad_edge) continue;
        GK_UNROLL
        for (int u = 0; u < U; ++u) {  // alpha m leaky' <dO_i, x_j> of each edge
          A gain[K];
          GK_UNROLL
          for (int k = 0; k < K; ++k) {
            A values[V];
            rows[u][k].get(values);
            gain[k] = dot(values, x_row[k]);
          }
          lane.add_channels(gain);
          GK_UNROLL
          for (int k = 0; k < K; ++k) {
            if (e + u >= n || !lane.leads(k)) continue;
            const int at = lane.head_of(k) * board.pitch + e + u;
            const A kept = board.kept[at], rest = board.weights[at] - kept;
            const int64_t id = board.ids[e + u];
            grad_edge[id * all_heads + lane.first_head + lane.head_of(k)] +=
                (kept + rest * scorer.slope) * gain[k];
          }
        }
      }
    }
    sums.sum = lane.add_edges(sums.sum);
    sum = sums.sum;  // the same for every part
    if (!item.there) continue;
    if (item.chunk >= 0) {
      sums.put_partial(call, lane, part, item.chunk);
    } else {
      finish_part(call, item.row, item.count > 0, true, lane, sums, dots);
    }
  }
  finish_row(call, item.row, item.there && item.chunk < 0, lane, sum, dots);
}

template <class T, int V, int K>
GK_KERNEL(kMergeWarps* kWarp)
merge(GK_CONSTANT Call call) {
  using A = Sum<T>;
  GK_SHARED_MEMORY(shared);
  const Partials partials(call.schedule, blockIdx.x);
  if (partials.count() == 0) return;
  Lane<V, K> lane(call.layout);
  const int64_t row = partials.row;
  A dots[K] = {}, sum = A(0);
  bool writes = false;
  for (int part = 0; part < call.layout.parts; ++part) {
    lane.enter(part);
    RowSums<T, V, K> sums;
    const auto place = [&](int i) { return partials.place(i); };
    const bool whole =
        merge_partials(sums, call, lane, reinterpret_cast<A*>(shared), partials.count(), place);
    writes = whole && int(threadIdx.x) < lane.group_lanes;
    sum = sums.sum;
    finish_part(call, row, true, writes, lane, sums, dots);
  }
  finish_row(call, row, writes, lane, sum, dots);
}

}  // namespace

template <class T>
cudaError_t gat_backward(const GatBackward& p, const Plan& plan) {
  const bool rows_aligned = aligned<T>(p.x) && aligned<T>(p.grad) && aligned<T>(p.grad_x);
  const Prologue prologue{{},      p.csr,   p.scores,     p.grad,   p.out,     p.out_pos,
                          p.stats, p.alpha, p.grad_alpha, p.fields, p.grad_dst};
  cudaError_t error = backward_prologue<T>(p.shape, rows_aligned, prologue, plan.stream);
  if (error != cudaSuccess) return error;
  const auto run = [&](auto v, auto k) {
    const Call call{p.csc,
                    plan.csc,
                    make_layout(p.shape, v, k, plan.most_heads),
                    p.scores,
                    Draw(p.scores.dropout),
                    p.x,
                    p.grad,
                    p.fields,
                    p.grad_alpha,
                    p.grad_edge,
                    plan.partials,
                    p.grad_x,
                    p.grad_src};
    const cudaError_t failed =
        launch_items<Sum<T>>(backward<T, v(), k()>, call, kTables, plan.stream);
    if (failed != cudaSuccess) return failed;
    return launch_merge<RowSums<T, v(), k()>>(merge<T, v(), k()>, call, plan.stream);
  };
  error = with_vectors<T, kShare>(p.shape, rows_aligned, plan.most_heads, run);
  if (error != cudaSuccess || !p.att_src) return error;
  return node_score_gradients<T>(p, plan);
}

template cudaError_t gat_backward<GK_TYPE>(const GatBackward&, const Plan&);

}  // namespace cuda
}  // namespace gatkernels
