// Forward of separable scores, GAT's, and their attention weights. Lanes are edges when scoring and
// features when summing rows.
#include "edge_loop.h"
#include "forward.h"
#include "kernels.h"
#include "separable.h"

namespace gatkernels {
namespace cuda {
namespace {

constexpr int kTables = 2;  // weights, and those of positive scores

struct Call {
  Edges edges;
  Schedule schedule;
  Layout layout;
  GatScores scores;
  Dropout dropout;
  Matrix x;
  ForwardResults to;
  const void* stats;  // with alpha
  void* alpha;        // [E, H] in the user's order
};

// Blocks on a multiprocessor that registers leave room for without spilling.
template <class T, int V, int K>
constexpr int kBlocks = sizeof(T) == 8 ? 1
                        : K == 1       ? 5
                        : V * K == 16  ? 3
                                       : 4;

// A group of lanes has an item (edge_loop.h). While edges are scored a lane has one head of every
// edges_apart-th run of kScored edges, and the softmax of that head over them; while rows are added
// it has K vectors of the row.
template <class T, int V, int K>
GK_KERNEL_BLOCKS(kThreads, (kBlocks<T, V, K>))
forward(GK_CONSTANT Call call) {
  using A = Sum<T>;
  constexpr int U = kGathered<K>;
  GK_SHARED_MEMORY(shared);
  Lane<V, K> lane(call.layout);
  const Task task(call, lane);
  if (task.longest < 0) return;
  const Item& item = task.item;
  const Board<A> board(shared, lane, kTables);
  const bool pair = call.to.out_pos != nullptr;
  const GatScorer<A> scorer(call.scores, call.layout.heads, lane.first_head + lane.head);
  const A score_dst = item.there && lane.scores() ? scorer.dst_of(item.row) : A(0);
  const Mask<A> mask(call.dropout);
  const int own = lane.head * board.pitch;  // of this lane's scores
  const int apart = kScored * lane.edges_apart, start = kScored * lane.first_edge;

  for (int part = 0; part < call.layout.parts; ++part) {
    lane.enter(part);
    const Source<T, V, K> x(Rows<T, V, K>(call.x), lane);
    RowState<T, V, K> state;
    A top = minus_infinity<A>(), sum = A(0), sum_pos = A(0);
    const bool ids = call.dropout.seed || call.scores.edge;
    task.each_board(call, lane, board, ids, [&](int base, int n, int steps) {
      // Score the edges, and find their maximum.
      A best = top;
      for (int e = start; e < n && lane.scores(); e += apart) {
        int32_t node[kScored], id[kScored];
        A s[kScored];
        load_plain(board.nodes + e, node);
        load_plain(board.ids + e, id);
        GK_UNROLL
        for (int i = 0; i < kScored; ++i) s[i] = e + i < n ? scorer.src_of(node[i]) : A(0);
        GK_UNROLL
        for (int i = 0; i < kScored; ++i) {
          if (e + i >= n) continue;
          s[i] = scorer.score(s[i] + score_dst, id[i]);
          best = larger(best, scorer.logit(s[i]));
        }
        store_plain(board.weights + own + e, s);
      }

      // Rescale what was added under the old maximum.
      best = lane.max_edges(best);
      const A factor = rescale(top, best);
      top = best;
      sum *= factor;
      sum_pos *= factor;
      if (base > 0 && __any_sync(kFull, factor != A(1))) {
        GK_UNROLL
        for (int k = 0; k < K; ++k) state.scale(k, lane.from_lane(factor, lane.head_of(k)), pair);
      }

      // Exponentiate.
      for (int e = start; e < steps && lane.scores(); e += apart) {
        A w[kScored], positive[kScored];
        load_plain(board.weights + own + e, w);
        GK_UNROLL
        for (int i = 0; i < kScored; ++i) {
          const A s = w[i];
          w[i] = e + i < n ? exp_below(scorer.logit(s), top) : A(0);
          positive[i] = e + i < n && s > A(0) ? w[i] : A(0);
          sum += w[i];
          sum_pos += positive[i];
        }
        store_plain(board.weights + own + e, w);
        store_plain(board.positive + own + e, positive);
      }

      // Drop.
      if (call.dropout.seed) {
        __syncwarp();
        mask.each(lane, task.draws(call, board, base), n, [&](int e, int head, A factor) {
          board.weights[head * board.pitch + e] *= factor;
          board.positive[head * board.pitch + e] *= factor;
        });
      }
      __syncwarp();

      // Gather and add the rows.
      each_gathered<U>(lane.least(n), steps, [&](auto whole, int e) {
        Raw<T, V> rows[U][K];
        x.template load<decltype(whole)::value>(board.nodes, e, n, rows);
        add_rows(rows, board, lane, e, pair, state.out, state.pos);
      });
    });
    state.set_softmax(lane, top, lane.add_edges(sum), lane.add_edges(sum_pos));
    if (item.there) state.put(call.to, item, lane, part);
  }
}

// A group of lanes has an item, a lane one head of every edges_apart-th of its edges.
template <class A>
GK_KERNEL(kThreads)
weights(GK_CONSTANT Call call) {
  const Lane<1, 1> lane(call.layout);
  const int64_t first = int64_t(blockIdx.x) * lane.groups();
  const Item item = item_of(call.edges, call.schedule, first + lane.group);
  if (!item.there || !lane.scores()) return;
  const int head = lane.first_head + lane.head;
  const int64_t heads = call.layout.heads;
  const GatScorer<A> scorer(call.scores, call.layout.heads, head);
  const EdgeReader edges(call.edges, item, true);
  const A* stats = static_cast<const A*>(call.stats) + item.row * 3 * heads + head;
  const A top = __ldg(stats), inverse = __ldg(stats + heads);
  const A score_dst = scorer.dst_of(item.row);
  const Mask<A> mask(call.dropout);
  for (int e = lane.first_edge; e < item.count; e += lane.edges_apart) {
    const Edge edge = edges.get(e);
    const A s = scorer.score(scorer.src_of(edge.node) + score_dst, edge.id);
    A alpha = exp_below(scorer.logit(s), top) * inverse;
    if (call.dropout.seed) alpha *= mask(edges.draw_of(e, edge), head);
    static_cast<A*>(call.alpha)[int64_t(edge.id) * heads + head] = alpha;
  }
}

}  // namespace

template <class T>
cudaError_t gat_forward(const GatForward& p, const Plan& plan) {
  const bool rows_aligned = aligned<T>(p.x);
  const ForwardResults to{p.out, p.out_pos, p.stats, plan.partials};
  const auto run = [&](auto v, auto k) {
    const Layout layout = make_layout(p.shape, v, k, plan.most_heads);
    Call call = call_of<Call>(p, p.csr, plan.schedule, layout);
    call.x = p.x;
    call.to = to;
    const cudaError_t error =
        launch_items<Sum<T>>(forward<T, v(), k()>, call, kTables, plan.stream);
    if (error != cudaSuccess) return error;
    return merge_forward<T>(p.shape, rows_aligned, plan, to);
  };
  return with_vectors<T, kShare>(p.shape, rows_aligned, plan.most_heads, run);
}

template <class A>
cudaError_t gat_alpha(const GatAlpha& p, const Plan& plan) {
  Call call = call_of<Call>(p, p.csr, plan.schedule, make_layout(p.shape, 1, 1));
  call.stats = p.stats;
  call.alpha = p.alpha;
  return launch_items<A>(weights<A>, call, 0, plan.stream);
}

template cudaError_t gat_forward<GK_TYPE>(const GatForward&, const Plan&);
#ifdef GK_TYPE_OF_SUMS
template cudaError_t gat_alpha<GK_TYPE>(const GatAlpha&, const Plan&);
#endif

}  // namespace cuda
}  // namespace gatkernels
