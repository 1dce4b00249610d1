// Backward of row-wise scores: a pass over CSR for grad_dst and grad_att, a pass over CSC for
// grad_src. Per edge, with dl = alpha (m <dO, x_j> - delta) and what the scorer says of its score:
//   grad_dst += dl reach.i,  grad_att += dl reach.att,  grad_src += dl reach.j + alpha m dO.
#include "att_parts.h"
#include "backward.h"
#include "edge_loop.h"
#include "kernels.h"
#include "merge.h"
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
  Matrix x;     // [Ns, H * C]
  Matrix grad;  // [Nd, H * C]
  const void* fields;
  const void* grad_alpha;  // or null
  void* partials;
  void* result;     // [rows, H * C]: grad_dst or grad_src
  void* grad_edge;  // [E, H * C], or null; by destination only
  void* att_parts;  // [blocks, H * C]; by destination only
};

template <class T, int V, int K>
using OneRow = RowSums<T, V, K, 1>;

template <class T>
GK_DEVICE T* result_of(const Call& call, int64_t row) {
  return static_cast<T*>(call.result) + row * call.layout.width();
}
// The end of an item: a row of the result, or a chunk of a hub's.
template <class T, int V, int K>
GK_DEVICE void put(const Call& call, const Item& item, const Lane<V, K>& lane,
                   const OneRow<T, V, K>& sums) {
  if (item.chunk >= 0) {
    sums.put_partial(call, lane, 0, item.chunk);
  } else {
    put_row<T, V, K>(result_of<T>(call, item.row), lane, sums.of[0]);
  }
}

// Blocks on a multiprocessor that registers leave room for without spilling.
template <class T, int V, int K, bool kPlain>
constexpr int kBlocks = sizeof(T) == 8     ? 1
                        : V == 4 && K == 1 ? (kPlain ? 4 : 3)
                        : kPlain           ? 3
                                           : 1;

// By destination. A block goes through the items in strides and has sums for grad_att of its own; a
// group of lanes has an item at a time (edge_loop.h), a lane K vectors of its row: of x_i, dO_i,
// the sums for both gradients, and of the U rows x_j that are gathered at a time. kPlain: without
// edge features or a gradient of attention weights, and heads no wider than the lanes.
template <class T, class Scorer, int V, int K, bool kPlain>
GK_KERNEL_BLOCKS(kThreads, (kBlocks<T, V, K, kPlain>))
by_destination(GK_CONSTANT Call call) {
  using A = Sum<T>;
  constexpr int U = sizeof(T) == 8 ? 2 : kGathered<K>;
  GK_SHARED_MEMORY(shared);
  Lane<V, K> lane(call.layout);
  const Board<A> board(shared, lane, kTables);
  RowScores<T, Scorer, V, K> scores(call.scores, call.x, call.layout);
  const Scorer& scorer = scores.scorer;
  const Rows<T, V, K> grads(call.grad);
  const bool with_edge = !kPlain && call.scores.edge;
  const int parts = kPlain ? 1 : call.layout.parts;
  T* grad_edge = kPlain ? nullptr : static_cast<T*>(call.grad_edge);
  const bool ids = call.dropout.seed || with_edge || (!kPlain && call.grad_alpha);
  const Mask<A> mask(call.dropout);
  const int64_t items = items_of(call.edges, call.schedule);

  for (int part = 0; part < parts; ++part) {
    lane.enter(part);
    scores.enter(lane);
    const Source<T, V, K> from_x(scores.x, lane), from_edge(scores.edge, lane);
    const FieldSource<A, V, K> fields(call.fields, lane);
    typename Scorer::GradAtt att_sums[K][V] = {};
    for (int64_t first = int64_t(blockIdx.x) * lane.groups(); first < items;
         first += int64_t(gridDim.x) * lane.groups()) {
      const Task task(call, lane, first);
      if (task.longest < 0) continue;
      const Item& item = task.item;
      // The row's own: fields (for every edge), x_i and dO_i.
      Fields<A> f[U][K];
      if (item.there) fields.load(int32_t(item.row), f[0]);
      each_value<U, K>([&](int u, int k) { f[u][k] = f[0][k]; });
      A x_i[K][V], grad[K][V];
      scores.dst.get(item.row, item.there, lane, x_i);
      grads.get(item.row, item.there, lane, grad);
      typename Scorer::GradI sums[K][V] = {};
      A total[K] = {};  // of dl

      task.each_board(call, lane, board, ids, [&](int base, int n, int steps) {
        mask.post(call.dropout, lane, board, task.draws(call, board, base), n);
        const auto add = [&](auto whole, int e) {
          constexpr bool kWhole = decltype(whole)::value;
          // Gather rows.
          Raw<T, V> rows[U][K], edge_rows[U][K];
          from_x.template load<kWhole>(board.nodes, e, n, rows);
          if (with_edge) from_edge.template load<kWhole>(board.ids, e, n, edge_rows);

          // Score, and <dO_i, x_j>.
          A logits[U][K], gains[U][K], w[U][K], dl[U][K];
          each_value<U, K>([&](int u, int k) {
            A key[V];
            rows[u][k].get(key);
            gains[u][k] = dot(grad[k], key);
            if (with_edge) edge_rows[u][k].add_to(key);
            logits[u][k] = scores.share(k, key, x_i[k]);
            if (!kPlain && k == 0 && call.layout.parts > 1 && e + u < n) {
              const int64_t j = board.nodes[e + u], id = board.ids[e + u];
              logits[u][k] += scores.other_parts(j, item.row, id, lane, part);
              gains[u][k] += scores.other_gain(grads, j, item.row, lane, part);
            }
          });
          edge_terms<kPlain, kWhole>(call, lane, f, board, e, n, logits, gains, w, dl);

          // Add what the scores' gradients reach.
          each_value<U, K>([&](int u, int k) {
            if (!kWhole && e + u >= n) return;  // x_i may not be finite
            A key[V], terms[V];
            rows[u][k].get(key);
            if (with_edge) edge_rows[u][k].add_to(key);
            total[k] += dl[u][k];
            GK_UNROLL
            for (int v = 0; v < V; ++v) {
              sums[k][v].add(scorer, dl[u][k], scores.att[k][v], key[v], x_i[k][v]);
              att_sums[k][v].add(scorer, dl[u][k], scores.att[k][v], key[v], x_i[k][v]);
            }
            if (!grad_edge || !lane.has(k)) return;
            GK_UNROLL
            for (int v = 0; v < V; ++v) {
              terms[v] = dl[u][k] * scorer.reach(scores.att[k][v], key[v], x_i[k][v]).j;
            }
            const int64_t id = board.ids[e + u];
            store<T, V>(grad_edge + id * call.layout.width() + lane.feature[k], terms);
          });
        };
        each_gathered<U>(kPlain ? lane.least(n) : 0, steps, add);
      });
      OneRow<T, V, K> result;
      each_value<K, V>([&](int k, int v) {
        result.of[0][k][v] += sums[k][v].gradient(scorer, scores.att[k][v], total[k]);
      });
      if (item.there) put<T>(call, item, lane, result);
    }

    // The block's row of att_parts.
    OneRow<T, V, K> att;
    each_value<K, V>([&](int k, int v) {
      att.of[0][k][v] += att_sums[k][v].gradient(scorer, scores.att[k][v], A(0));
    });
    A* to = static_cast<A*>(call.att_parts) + int64_t(blockIdx.x) * call.layout.width();
    add_block(att, lane, reinterpret_cast<A*>(shared));
    if (int(threadIdx.x) < lane.group_lanes) put_row<A, V, K>(to, lane, att.of[0]);
    __syncthreads();
  }
}

// By source. A group of lanes has an item (edge_loop.h), a lane K vectors of its row: of x_j, the
// gradient's sum, and of the U rows dO_i and x_i that are gathered at a time.
template <class T, class Scorer, int V, int K, bool kPlain>
GK_KERNEL(kThreads)
by_source(GK_CONSTANT Call call) {
  using A = Sum<T>;
  constexpr int U = (K > 1 ? 2 : 4) / (sizeof(T) == 8 ? 2 : 1);
  GK_SHARED_MEMORY(shared);
  Lane<V, K> lane(call.layout);
  const Task task(call, lane);
  if (task.longest < 0) return;
  const Item& item = task.item;
  const Board<A> board(shared, lane, kTables);
  const bool with_edge = !kPlain && call.scores.edge;
  const int parts = kPlain ? 1 : call.layout.parts;
  const bool ids = call.dropout.seed || with_edge || (!kPlain && call.grad_alpha);
  RowScores<T, Scorer, V, K> scores(call.scores, call.x, call.layout);
  const Rows<T, V, K> grads(call.grad);
  const Mask<A> mask(call.dropout);

  for (int part = 0; part < parts; ++part) {
    lane.enter(part);
    scores.enter(lane);
    const Source<T, V, K> from_grad(grads, lane), from_dst(scores.dst, lane);
    const Source<T, V, K> from_edge(scores.edge, lane);
    const FieldSource<A, V, K> fields(call.fields, lane);
    OneRow<T, V, K> result;
    A x_j[K][V];
    scores.x.get(item.row, item.there, lane, x_j);

    task.each_board(call, lane, board, ids, [&](int base, int n, int steps) {
      mask.post(call.dropout, lane, board, task.draws(call, board, base), n);
      const auto add = [&](auto whole, int e) {
        constexpr bool kWhole = decltype(whole)::value;
        // Gather rows and fields.
        Raw<T, V> grad_rows[U][K], dst_rows[U][K], edge_rows[U][K];
        Fields<A> f[U][K];
        from_grad.template load<kWhole>(board.nodes, e, n, grad_rows);
        from_dst.template load<kWhole>(board.nodes, e, n, dst_rows);
        GK_UNROLL
        for (int u = 0; u < U; ++u) {
          if (kWhole || e + u < n) fields.load(board.nodes[e + u], f[u]);
        }
        if (with_edge) from_edge.template load<kWhole>(board.ids, e, n, edge_rows);
        const auto get = [&](int u, int k, A(&key)[V], A(&x_i)[V]) {
          GK_UNROLL
          for (int v = 0; v < V; ++v) key[v] = x_j[k][v];
          if (with_edge) edge_rows[u][k].add_to(key);
          dst_rows[u][k].get(x_i);
        };

        // Score, and <dO_i, x_j>.
        A logits[U][K], gains[U][K], w[U][K], dl[U][K];
        each_value<U, K>([&](int u, int k) {
          A grad[V], key[V], x_i[V];
          grad_rows[u][k].get(grad);
          gains[u][k] = dot(grad, x_j[k]);
          get(u, k, key, x_i);
          logits[u][k] = scores.share(k, key, x_i);
          if (!kPlain && k == 0 && call.layout.parts > 1 && e + u < n) {
            const int64_t i = board.nodes[e + u], id = board.ids[e + u];
            logits[u][k] += scores.other_parts(item.row, i, id, lane, part);
            gains[u][k] += scores.other_gain(grads, item.row, i, lane, part);
          }
        });
        edge_terms<kPlain, kWhole>(call, lane, f, board, e, n, logits, gains, w, dl);

        // Add what the scores' gradients reach, and the rows of dO.
        each_value<U, K>([&](int u, int k) {
          A grad[V], key[V], x_i[V];
          grad_rows[u][k].get(grad);
          get(u, k, key, x_i);
          GK_UNROLL
          for (int v = 0; v < V; ++v) {
            const A reach = scores.scorer.reach(scores.att[k][v], key[v], x_i[v]).j;
            result.of[0][k][v] += dl[u][k] * reach + w[u][k] * grad[v];
          }
        });
      };
      each_gathered<U>(kPlain ? lane.least(n) : 0, steps, add);
    });
    if (item.there) put<T>(call, item, lane, result);
  }
}

template <class T, int V, int K>
GK_KERNEL(kMergeWarps* kWarp)
merge(GK_CONSTANT Call call) {
  GK_SHARED_MEMORY(shared);
  using Sums = OneRow<T, V, K>;
  merge_hub<Sums>(call, shared, [&](Sums& sums, auto& lane, int64_t row, int, bool writes) {
    if (writes) put_row<T, V, K>(result_of<T>(call, row), lane, sums.of[0]);
  });
}

}  // namespace

// Of both sides: run(scorer, V, K, call, plain).
template <class T, class Params, class Run>
cudaError_t with_call(const Params& p, const Edges& edges, const Plan& plan, Run run) {
  const bool rows_aligned = aligned<T>(p.x) && aligned<T>(p.scores.dst) && aligned<T>(p.grad) &&
                            aligned(p.scores.edge, 0) && aligned(p.scores.att, 0);
  return with_scorer(p.scorer, [&](auto scorer) {
    return with_vectors<T, kShare2>(p.shape, rows_aligned, plan.most_heads, [&](auto v, auto k) {
      const Layout layout = make_layout(p.shape, v(), k(), plan.most_heads);
      Call call = call_of<Call>(p, edges, plan.schedule, layout);
      call.x = p.x;
      call.grad = p.grad;
      call.fields = p.fields;
      call.grad_alpha = p.grad_alpha;
      call.partials = plan.partials;
      const bool plain = !p.scores.edge && !p.grad_alpha && layout.parts == 1;
      return run(scorer, v, k, call, plain);
    });
  });
}

template <class T>
cudaError_t rowwise_destinations(const RowwiseDestinations& p, const Plan& plan) {
  using A = Sum<T>;
  const bool rows_aligned = aligned<T>(p.grad);
  cudaError_t error = backward_prologue<T>(p.shape, rows_aligned, Prologue(p), plan.stream);
  if (error != cudaSuccess) return error;

  return with_call<T>(p, p.csr, plan, [&](auto scorer, auto v, auto k, Call& call, bool plain) {
    using Scorer = typename decltype(scorer)::template type<A>;
    constexpr int V = v(), K = k();
    const Layout& layout = call.layout;
    call.result = p.grad_dst;
    call.grad_edge = p.grad_edge;
    call.att_parts = plan.att_parts;
    const int groups = kThreads >> layout.log2_group;
    const int64_t wanted = (call.schedule.chunks + call.edges.rows + groups - 1) / groups;
    const int64_t blocks = wanted < kAttParts ? wanted : kAttParts;
    const int64_t boards = int64_t(groups) * BoardSize(layout).template bytes<A>(kTables);
    const int64_t table = block_table<OneRow<T, V, K>>();
    error = launch(
        plain ? by_destination<T, Scorer, V, K, true> : by_destination<T, Scorer, V, K, false>,
        blocks, layout.tiles, kThreads, boards > table ? boards : table, plan.stream, call);
    if (error != cudaSuccess) return error;
    error = sum_parts<A>(plan, p.grad_att, blocks, layout.width());
    if (error != cudaSuccess) return error;
    return launch_merge<OneRow<T, V, K>>(merge<T, V, K>, call, plan.stream);
  });
}

template <class T>
cudaError_t rowwise_sources(const RowwiseSources& p, const Plan& plan) {
  return with_call<T>(p, p.csc, plan, [&](auto scorer, auto v, auto k, Call& call, bool plain) {
    using Scorer = typename decltype(scorer)::template type<Sum<T>>;
    constexpr int V = v(), K = k();
    call.result = p.grad_src;
    const cudaError_t error = launch_items<Sum<T>>(
        plain ? by_source<T, Scorer, V, K, true> : by_source<T, Scorer, V, K, false>, call, kTables,
        plan.stream);
    if (error != cudaSuccess) return error;
    return launch_merge<OneRow<T, V, K>>(merge<T, V, K>, call, plan.stream);
  });
}

template cudaError_t rowwise_destinations<GK_TYPE>(const RowwiseDestinations&, const Plan&);
template cudaError_t rowwise_sources<GK_TYPE>(const RowwiseSources&, const Plan&);

}  // namespace cuda
}  // namespace gatkernels
