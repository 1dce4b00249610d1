// Forward of dot products, and their attention weights: the keys and values of some edges are
// gathered together, so that both are on their way before the scores are known.
#include "dot.h"
#include "kernels.h"
#include "merge.h"

namespace gatkernels {
namespace cuda {
namespace {

struct Call {
  Edges edges;
  Schedule schedule;
  DotLayout layout;
  DotScores scores;
  Dropout dropout;
  Matrix v;             // [Ns, H * D]
  void* out;            // [Nd, H * D]
  void* edge_out;       // [Nd, H * F]
  void* stats;          // [Nd, 3, H], or null
  const void* softmax;  // such stats of a forward, with alpha
  void* alpha;          // null in a forward
  void* partials;       // of sums: out, edge_out, maximum, sum
};

// The running softmax of each vector's head, and sums of rows.
template <class T, int V, int K>
struct DotState {
  using A = Sum<T>;
  using Lanes = DotLanes<V, K, false>;
  A top[K], sum[K] = {};
  DotSums<T, V, K, kOfValues, kOfFeatures> rows;

  GK_DEVICE DotState() {
    GK_UNROLL
    for (int k = 0; k < K; ++k) top[k] = minus_infinity<A>();
  }
  GK_DEVICE void scale(int k, A factor) {
    GK_UNROLL
    for (int v = 0; v < V; ++v) {
      rows.first[k][v] *= factor;
      rows.second[k][v] *= factor;
    }
  }
  static constexpr int kValues = 2 * K + decltype(rows)::kValues;
  template <class Visit>
  GK_DEVICE void each(Visit visit) {
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      visit(top[k], k);
      visit(sum[k], K + k);
    }
    rows.each([&](A& value, int i) { visit(value, 2 * K + i); });
  }
  GK_DEVICE void absorb(DotState other) {
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      const A best = larger(top[k], other.top[k]);
      const A mine = rescale(top[k], best), theirs = rescale(other.top[k], best);
      top[k] = best;
      sum[k] = mine * sum[k] + theirs * other.sum[k];
      scale(k, mine);
      other.scale(k, theirs);
    }
    rows.absorb(other.rows);
  }
  template <class AnyLanes>
  GK_DEVICE void put_partial(const Call& call, const AnyLanes& lanes, int part,
                             int64_t place) const {
    A* scalars = rows.put_partial(call, lanes, part, place) + lanes.first_head;
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      if (part != 0 || !lanes.leads(k)) continue;
      scalars[lanes.head_of(k)] = top[k];
      scalars[lanes.layout.heads + lanes.head_of(k)] = sum[k];
    }
  }
  GK_DEVICE void get_partial(const Call& call, const Lanes& lanes, int64_t place) {
    const A* scalars = rows.get_partial(call, lanes, place) + lanes.first_head;
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      if (lanes.head_of(k) >= lanes.tile_heads) continue;
      top[k] = __ldg(scalars + lanes.head_of(k));
      sum[k] = __ldg(scalars + lanes.layout.heads + lanes.head_of(k));
    }
  }
  template <class AnyLanes>
  GK_DEVICE void finish(const Call& call, int64_t row, const AnyLanes& lanes, int part,
                        bool empty) {
    const int heads = lanes.layout.heads;
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      const A inverse = empty ? A(0) : A(1) / sum[k];
      if (call.stats && part == 0 && lanes.leads(k)) {
        A* stats =
            static_cast<A*>(call.stats) + row * 3 * heads + lanes.first_head + lanes.head_of(k);
        stats[0] = empty ? A(0) : top[k];
        stats[heads] = inverse;
        stats[2 * heads] = A(0);
      }
      scale(k, inverse);
    }
    rows.put(call.out, call.edge_out, row, lanes);
  }
};

// Blocks on a multiprocessor that registers leave room for without spilling.
template <class T, int V, int K, bool kPlain>
constexpr int kBlocks = sizeof(T) == 8     ? 1
                        : V == 4 && K == 1 ? (kPlain ? 5 : 4)
                                           : 3;

// A group of lanes has an item (edge_loop.h), a lane K vectors of its rows: of q_i and
// edge_query_i, of the sums of both results, and of the U rows k_j, v_j and edge_e that are scored
// and added at a time. The softmax of a head is held by each lane of the head. kPlain: values are
// as wide as keys, there are no edge features, and heads are no wider than the lanes; writes no
// attention weights.
template <class T, int V, int K, bool kPlain>
GK_KERNEL_BLOCKS(kThreads, (kBlocks<T, V, K, kPlain>))
forward(GK_CONSTANT Call call) {
  using A = Sum<T>;
  constexpr int U = kPlain ? kGathered<K> : 2;
  GK_SHARED_MEMORY(shared);
  DotLanes<V, K, kPlain> lanes(call.layout);
  const Task task(call, lanes);
  if (task.longest < 0) return;
  const Item& item = task.item;
  const Board<A> board(shared, lanes, kDotTables);
  const int64_t all_heads = call.layout.heads;
  A* alphas = kPlain ? nullptr : static_cast<A*>(call.alpha);
  const bool with_edge = !kPlain && call.layout.features > 0;
  const int parts = kPlain || alphas ? 1 : call.layout.parts;
  const DotRows<T, V, K> from(call.scores, call.layout.features);
  const Rows<T, V, K> from_v(call.v);
  const Mask<A> mask(call.dropout);

  for (int part = 0; part < parts; ++part) {
    // The row's own: q_i and edge_query_i, scaled, and, for attention weights, its softmax.
    lanes.enter(part);
    const Source<T, V, K> keys(from.k, lanes), values(from_v, lanes.values);
    const Source<T, V, K> edges(from.edge, lanes.shared_features);
    DotState<T, V, K> state;
    A q_i[K][V], query_i[K][V], inverse[K];
    from.q.get(item.row, item.there, lanes, q_i);
    from.queries.get(item.row, item.there, lanes.features, query_i);
    scale_by(from.scale, q_i);
    scale_by(from.scale, query_i);
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      if (!alphas || !item.there || lanes.head_of(k) >= lanes.tile_heads) continue;
      const A* stats = static_cast<const A*>(call.softmax) + item.row * 3 * all_heads +
                       lanes.first_head + lanes.head_of(k);
      state.top[k] = __ldg(stats);
      inverse[k] = __ldg(stats + all_heads);
    }

    const bool ids = call.dropout.seed || with_edge || alphas;
    task.each_board(call, lanes, board, ids, [&](int base, int n, int steps) {
      mask.post(call.dropout, lanes, board, task.draws(call, board, base), n);
      const auto add = [&](auto whole, int e) {
        constexpr bool kWhole = decltype(whole)::value;
        // Gather rows.
        Raw<T, V> key_rows[U][K], value_rows[U][K], edge_rows[U][K];
        keys.template load<kWhole>(board.nodes, e, n, key_rows);
        if (!alphas) values.template load<kWhole>(board.nodes, e, n, value_rows);
        if (with_edge) edges.template load<kWhole>(board.ids, e, n, edge_rows);

        // Score.
        A logits[U][K];
        each_value<U, K>([&](int u, int k) {
          A row[V];
          key_rows[u][k].get(row);
          logits[u][k] = dot(q_i[k], row);
          if (with_edge) {
            edge_rows[u][k].get(row);
            logits[u][k] += dot(query_i[k], row);
          }
          if (!kPlain && k == 0 && call.layout.parts > 1 && e + u < n) {
            const int64_t j = board.nodes[e + u], id = board.ids[e + u];
            logits[u][k] += from.other_parts(item.row, j, id, lanes, part);
          }
        });
        lanes.add_channels_of_each(logits);

        // Write attention weights, ...
        if (alphas) {
          each_value<U, K>([&](int u, int k) {
            if (e + u >= n || !lanes.leads(k)) return;
            A alpha = exp_below(logits[u][k], state.top[k]) * inverse[k];
            if (call.dropout.seed) alpha *= board.weights[lanes.head_of(k) * board.pitch + e + u];
            const int64_t id = board.ids[e + u];
            alphas[id * all_heads + lanes.first_head + lanes.head_of(k)] = alpha;
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
          state.scale(k, factor);
          A factors[U];
          if (call.dropout.seed) {
            load_plain(board.weights + lanes.weight_of(k) * board.pitch + e, factors);
          }
          GK_UNROLL
          for (int u = 0; u < U; ++u) {
            const bool there = kWhole || e + u < n;
            A w = there ? exp_below(logits[u][k], top) : A(0);
            state.sum[k] += w;
            if (call.dropout.seed && there) w *= factors[u];
            A row[V];
            value_rows[u][k].get(row);
            GK_UNROLL
            for (int v = 0; v < V; ++v) state.rows.first[k][v] += w * row[v];
            if (!with_edge) continue;
            edge_rows[u][k].get(row);
            GK_UNROLL
            for (int v = 0; v < V; ++v) state.rows.second[k][v] += w * row[v];
          }
        }
      };
      each_gathered<U>(kPlain ? lanes.least(n) : 0, steps, add);
    });
    if (!item.there || alphas) continue;
    if (item.chunk >= 0) {
      state.put_partial(call, lanes, part, item.chunk);
    } else {
      state.finish(call, item.row, lanes, part, item.count == 0);
    }
  }
}

template <class T, int V, int K>
GK_KERNEL(kMergeWarps* kWarp)
merge(GK_CONSTANT Call call) {
  GK_SHARED_MEMORY(shared);
  using State = DotState<T, V, K>;
  merge_hub<State>(call, shared,
                   [&](State& state, auto& lanes, int64_t row, int part, bool writes) {
                     if (writes) state.finish(call, row, lanes, part, false);
                   });
}

}  // namespace

template <class T>
cudaError_t dot_forward(const DotForward& p, const Plan& plan) {
  return with_dot_call<T, Call>(
      p, p.csr, p.v.channels, aligned<T>(p.v.rows), plan, [&](auto v, auto k, Call& call) {
        constexpr int V = v(), K = k();
        call.v = p.v.rows;
        call.out = p.out;
        call.edge_out = p.edge_out;
        call.stats = p.stats;
        const cudaError_t error = launch_items<Sum<T>>(
            plain(call.layout) ? forward<T, V, K, true> : forward<T, V, K, false>, call, kDotTables,
            plan.stream);
        if (error != cudaSuccess) return error;
        return launch_merge<DotState<T, V, K>>(merge<T, V, K>, call, plan.stream);
      });
}
template <class T>
cudaError_t dot_alpha(const DotAlpha& p, const Plan& plan) {
  if (p.alpha == nullptr) return cudaSuccess;  // no edges
  return with_dot_call<T, Call>(p, p.csr, 0, true, plan, [&](auto v, auto k, Call& call) {
    call.softmax = p.stats;
    call.alpha = p.alpha;
    return launch_items<Sum<T>>(forward<T, v(), k(), false>, call, kDotTables, plan.stream);
  });
}

template cudaError_t dot_forward<GK_TYPE>(const DotForward&, const Plan&);
template cudaError_t dot_alpha<GK_TYPE>(const DotAlpha&, const Plan&);

}  // namespace cuda
}  // namespace gatkernels
