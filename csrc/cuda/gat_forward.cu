// GAT forward. Lanes are edges when scoring and features when summing rows.
#include "forward.h"
#include "gat.h"
#include "gather.h"
#include "kernels.h"

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
  Matrix x;
  ForwardResults to;
};

// Blocks on a multiprocessor that registers leave room for without spilling.
template <class T, int V, int K>
constexpr int kBlocks = sizeof(T) == 8 ? 1
                        : K == 1       ? 5
                        : V * K == 16  ? 3
                                       : 4;

template <class T, int V, int K>
GK_KERNEL_BLOCKS(kThreads, (kBlocks<T, V, K>))
forward(GK_CONSTANT Call call) {
  using A = Sum<T>;
  constexpr int U = kGathered<K>;
  GK_SHARED_MEMORY(shared);
  Lane<V, K> lane(call.layout);
  const int64_t first = int64_t(blockIdx.x) * lane.groups();
  const Item item = item_of(call.edges, call.schedule, first + lane.group);
  const int longest = warp_max(item.there ? item.count : -1);
  if (longest < 0) return;
  const Board<A> board(shared, lane, kTables);
  const bool pair = call.to.out_pos != nullptr;
  const EdgeReader edges(call.edges, item, call.dropout.seed || call.scores.edge);
  const GatScorer<A> scorer(call.scores, call.layout.heads, lane.first_head + lane.head);
  const A score_dst = item.there && lane.scores() ? scorer.dst_of(item.row) : A(0);
  const Mask<A> mask(call.dropout);
  const int place = lane.head * board.pitch;  // of this lane's scores
  const int apart = kScored * lane.edges_apart, start = kScored * lane.first_edge;

  for (int part = 0; part < call.layout.parts; ++part) {
    lane.enter(part);
    const Source<T, V, K> x(Rows<T, V, K>(call.x), lane);
    RowState<T, V, K> state;
    A top = minus_infinity<A>(), sum = A(0), sum_pos = A(0);
    Edge next = edges.get(lane.lane);
    for (int base = 0; base < longest; base += lane.group_lanes) {
      const int n = at_most(item.count - base, lane.group_lanes);
      const int steps = at_most(longest - base, lane.group_lanes);
      board.post(lane, next);
      next = edges.get(base + lane.group_lanes + lane.lane);  // on its way while rows come in

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
        store_plain(board.weights + place + e, s);
      }
      best = lane.max_edges(best);
      const A factor = rescale(top, best);
      top = best;
      sum *= factor;
      sum_pos *= factor;
      if (base > 0 && __any_sync(kFull, factor != A(1))) {
        GK_UNROLL
        for (int k = 0; k < K; ++k) state.scale(k, lane.from_lane(factor, lane.head_of(k)), pair);
      }

      for (int e = start; e < steps && lane.scores(); e += apart) {
        A w[kScored], kept[kScored];
        load_plain(board.weights + place + e, w);
        GK_UNROLL
        for (int i = 0; i < kScored; ++i) {
          const A s = w[i];
          w[i] = e + i < n ? exp_below(scorer.logit(s), top) : A(0);
          kept[i] = e + i < n && s > A(0) ? w[i] : A(0);
          sum += w[i];
          sum_pos += kept[i];
        }
        store_plain(board.weights + place + e, w);
        store_plain(board.kept + place + e, kept);
      }
      if (call.dropout.seed) {
        __syncwarp();
        mask.each(lane, board.ids, n, [&](int e, int head, A factor) {
          board.weights[head * board.pitch + e] *= factor;
          board.kept[head * board.pitch + e] *= factor;
        });
      }
      __syncwarp();

      Raw<T, V> rows[U][K];
      const int whole = lane.least(n);
      int e = 0;
      for (; e + U <= whole; e += U) {
        x.template load<true>(board.nodes, e, n, rows);
        add_rows(rows, board, lane, e, pair, state.out, state.pos);
      }
      for (; e < steps; e += U) {
        x.load(board.nodes, e, n, rows);
        add_rows(rows, board, lane, e, pair, state.out, state.pos);
      }
    }
    state.set_softmax(lane, top, lane.add_edges(sum), lane.add_edges(sum_pos));
    if (item.there) state.put(call.to, item, lane, part);
  }
}

// alpha [E, H] in the user's order; lanes are edges throughout.
struct AlphaCall {
  Edges edges;
  Schedule schedule;
  Layout layout;
  GatScores scores;
  Draw dropout;
  const void* stats;
  void* alpha;
};

template <class A>
GK_KERNEL(kThreads)
weights(GK_CONSTANT AlphaCall call) {
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
    if (call.dropout.seed) alpha *= mask(edge.id, head);
    static_cast<A*>(call.alpha)[int64_t(edge.id) * heads + head] = alpha;
  }
}

}  // namespace

template <class T>
cudaError_t gat_forward(const GatForward& p, const Plan& plan) {
  const bool rows_aligned = aligned<T>(p.x);
  const ForwardResults to{p.out, p.out_pos, p.stats, plan.partials};
  const auto run = [&](auto v, auto k) {
    const Call call{p.csr,
                    plan.csr,
                    make_layout(p.shape, v, k, plan.most_heads),
                    p.scores,
                    Draw(p.scores.dropout),
                    p.x,
                    to};
    const cudaError_t error =
        launch_items<Sum<T>>(forward<T, v(), k()>, call, kTables, plan.stream);
    if (error != cudaSuccess) return error;
    return merge_forward<T>(p.shape, rows_aligned, plan, to);
  };
  return with_vectors<T, kShare>(p.shape, rows_aligned, plan.most_heads, run);
}

template <class A>
cudaError_t gat_alpha(const GatAlpha& p, const Plan& plan) {
  AlphaCall call{};
  call.edges = p.csr;
  call.schedule = plan.csr;
  call.layout = make_layout(p.shape, 1, 1);
  call.scores = p.scores;
  call.dropout = Draw(p.scores.dropout);
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
