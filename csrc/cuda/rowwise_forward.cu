// Forward of row-wise scores, and their attention weights: a gathered row stays in registers
// between score and sum.
#include "edge_loop.h"
#include "forward.h"
#include "kernels.h"
#include "rowwise.h"

namespace gatkernels {
namespace cuda {
namespace {

constexpr int kTables = 1;  // dropout factors

struct Call {
  Edges edges;
  Schedule schedule;
  Layout layout;
  RowwiseScores scores;
  Dropout dropout;
  Matrix x;
  ForwardResults to;
  const void* stats;  // with alpha
  void* alpha;        // null in a forward
};

// Blocks on a multiprocessor that registers leave room for without spilling.
template <class T, int V, int K, bool kPlain>
constexpr int kBlocks = sizeof(T) == 8         ? 1
                        : kPlain && V * K == 4 ? 4
                        : kPlain || V == 8     ? 3
                                               : 1;

// A group of lanes has an item (edge_loop.h), a lane K vectors of its row: of x_i, of the output's
// sum, and of the U rows x_j that are scored and added at a time. The softmax of a head is held by
// each lane of the head.
// kPlain: without edge features, and heads no wider than the lanes; writes no attention weights.
template <class T, class Scorer, int V, int K, bool kPlain>
GK_KERNEL_BLOCKS(kThreads, (kBlocks<T, V, K, kPlain>))
forward(GK_CONSTANT Call call) {
  using A = Sum<T>;
  constexpr int U = kGathered<K>;
  GK_SHARED_MEMORY(shared);
  Lane<V, K> lane(call.layout);
  const Task task(call, lane);
  if (task.longest < 0) return;
  const Item& item = task.item;
  const Board<A> board(shared, lane, kTables);
  const int64_t all_heads = call.layout.heads;
  A* alphas = kPlain ? nullptr : static_cast<A*>(call.alpha);
  const bool with_edge = !kPlain && call.scores.edge;
  const int parts = kPlain || alphas ? 1 : call.layout.parts;
  RowScores<T, Scorer, V, K> scores(call.scores, call.x, call.layout);
  const Mask<A> mask(call.dropout);
  ForwardResults to = call.to;
  to.out_pos = nullptr;  // known to the compiler

  for (int part = 0; part < parts; ++part) {
    // The row's own: x_i and, for attention weights, its softmax.
    lane.enter(part);
    scores.enter(lane);
    const Source<T, V, K> x(scores.x, lane), edge(scores.edge, lane);
    RowState<T, V, K> state;
    A x_i[K][V], inverse[K];
    scores.dst.get(item.row, item.there, lane, x_i);
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      if (!alphas || !item.there || lane.head_of(k) >= lane.tile_heads) continue;
      const A* stats = static_cast<const A*>(call.stats) + item.row * 3 * all_heads +
                       lane.first_head + lane.head_of(k);
      state.top[k] = __ldg(stats);
      inverse[k] = __ldg(stats + all_heads);
    }

    const bool ids = call.dropout.seed || with_edge || alphas;
    task.each_board(call, lane, board, ids, [&](int base, int n, int steps) {
      mask.post(call.dropout, lane, board, task.draws(call, board, base), n);
      const auto add = [&](auto whole, int e) {
        constexpr bool kWhole = decltype(whole)::value;
        // Gather rows.
        Raw<T, V> rows[U][K], edge_rows[U][K];
        x.template load<kWhole>(board.nodes, e, n, rows);
        if (with_edge) edge.template load<kWhole>(board.ids, e, n, edge_rows);

        // Score.
        A logits[U][K];
        each_value<U, K>([&](int u, int k) {
          A key[V];
          rows[u][k].get(key);
          if (with_edge) edge_rows[u][k].add_to(key);
          logits[u][k] = scores.share(k, key, x_i[k]);
          if (!kPlain && k == 0 && call.layout.parts > 1 && e + u < n) {
            const int64_t j = board.nodes[e + u], id = board.ids[e + u];
            logits[u][k] += scores.other_parts(j, item.row, id, lane, part);
          }
        });
        lane.add_channels_of_each(logits);

        // Write attention weights, ...
        if (alphas) {
          each_value<U, K>([&](int u, int k) {
            if (e + u >= n || !lane.leads(k)) return;
            A alpha = exp_below(logits[u][k], state.top[k]) * inverse[k];
            if (call.dropout.seed) alpha *= board.weights[lane.head_of(k) * board.pitch + e + u];
            const int64_t id = board.ids[e + u];
            alphas[id * all_heads + lane.first_head + lane.head_of(k)] = alpha;
          });
          return;
        }
        // ... or raise the maximum, rescale, exponentiate, drop and add the rows.
        GK_UNROLL
        for (int k = 0; k < K; ++k) {
          A top = state.top[k];
          GK_UNROLL
          for (int u = 0; u < U; ++u) {
            if (kWhole || e + u < n) top = larger(top, logits[u][k]);
          }
          const A factor = rescale(state.top[k], top);
          state.top[k] = top;
          state.sum[k] *= factor;
          state.scale(k, factor, false);
          A factors[U];
          if (call.dropout.seed) {
            load_plain(board.weights + lane.weight_of(k) * board.pitch + e, factors);
          }
          GK_UNROLL
          for (int u = 0; u < U; ++u) {
            const bool there = kWhole || e + u < n;
            A w = there ? exp_below(logits[u][k], top) : A(0);
            state.sum[k] += w;
            if (call.dropout.seed && there) w *= factors[u];
            A values[V];
            rows[u][k].get(values);
            GK_UNROLL
            for (int v = 0; v < V; ++v) state.out[k][v] += w * values[v];
          }
        }
      };
      each_gathered<U>(kPlain ? lane.least(n) : 0, steps, add);
    });
    if (item.there && !alphas) state.put(to, item, lane, part);
  }
}

// A forward, or with `alpha` the attention weights of one.
template <class T, class Params>
cudaError_t run_forward(const Params& p, const ForwardResults& to, const void* stats, void* alpha,
                        const Plan& plan) {
  const bool rows_aligned = aligned<T>(p.x) && aligned<T>(p.scores.dst) &&
                            aligned(p.scores.edge, 0) && aligned(p.scores.att, 0);
  const auto run = [&](auto scorer, auto v, auto k) {
    using Scorer = typename decltype(scorer)::template type<Sum<T>>;
    constexpr int V = v(), K = k();
    const Layout layout = make_layout(p.shape, V, K, plan.most_heads);
    Call call = call_of<Call>(p, p.csr, plan.schedule, layout);
    call.x = p.x;
    call.to = to;
    call.stats = stats;
    call.alpha = alpha;
    const bool plain = !alpha && !p.scores.edge && layout.parts == 1;
    return launch_items<Sum<T>>(
        plain ? forward<T, Scorer, V, K, true> : forward<T, Scorer, V, K, false>, call, kTables,
        plan.stream);
  };
  const cudaError_t error = with_scorer(p.scorer, [&](auto scorer) {
    return with_vectors<T, kShare2>(p.shape, rows_aligned, plan.most_heads,
                                    [&](auto v, auto k) { return run(scorer, v, k); });
  });
  return error != cudaSuccess || alpha ? error : merge_forward<T>(p.shape, rows_aligned, plan, to);
}

}  // namespace

template <class T>
cudaError_t rowwise_forward(const RowwiseForward& p, const Plan& plan) {
  return run_forward<T>(p, {p.out, nullptr, p.stats, plan.partials}, nullptr, nullptr, plan);
}
template <class T>
cudaError_t rowwise_alpha(const RowwiseAlpha& p, const Plan& plan) {
  if (p.alpha == nullptr) return cudaSuccess;  // no edges
  return run_forward<T>(p, {}, p.stats, p.alpha, plan);
}

template cudaError_t rowwise_forward<GK_TYPE>(const RowwiseForward&, const Plan&);
template cudaError_t rowwise_alpha<GK_TYPE>(const RowwiseAlpha&, const Plan&);

}  // namespace cuda
}  // namespace gatkernels
