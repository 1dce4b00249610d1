// Backward of dot products: a pass over CSR for grad_q and grad_edge_query, a pass over CSC for
// grad_k and grad_v. Per edge and head, with w = alpha m and
// dl = w (<dO_i, v_j> + <dE_i, edge_e>) - alpha delta:
//   grad_q += s dl k_j,  grad_edge_query += s dl edge_e,  grad_k += s dl q_i,  grad_v += w dO_i,
// where s is the scale. The first pass leaves s dl and w of every edge and head where there are
// edge features: grad_edge, a sum over heads, is made of them.
#include "backward.h"
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
  Matrix v;          // [Ns, H * D]
  Matrix grad;       // [Nd, H * D]
  Matrix edge_grad;  // [Nd, H * F]
  const void* fields;
  const void* grad_alpha;  // or null
  void* partials;
  void* first;       // [rows, H * C]: grad_q or grad_k
  void* second;      // grad_edge_query [Nd, H * F] or grad_v [Ns, H * D]
  void* edge_terms;  // [edges of CSR, H, 2], s dl and w, or null; by destination only
};

template <class T, int V, int K>
using QuerySums = DotSums<T, V, K, kOfKeys, kOfFeatures>;
template <class T, int V, int K>
using KeySums = DotSums<T, V, K, kOfKeys, kOfValues>;

// The end of an item: rows of the results, or a chunk of a hub's.
template <class Sums, class Lanes>
GK_DEVICE void put(const Call& call, const Item& item, const Lanes& lanes, const Sums& sums) {
  if (item.chunk >= 0) {
    sums.put_partial(call, lanes, 0, item.chunk);
  } else {
    sums.put(call.first, call.second, item.row, lanes);
  }
}

// Blocks on a multiprocessor that registers leave room for without spilling.
template <class T, int V, int K, bool kPlain, bool kBySource>
constexpr int kBlocks = sizeof(T) == 8     ? 1
                        : V == 4 && K == 1 ? (kPlain && !kBySource ? 5 : 4)
                        : kPlain           ? (V == 8 && kBySource ? 2 : 3)
                                           : 2;

// By destination. A group of lanes has an item (edge_loop.h), a lane K vectors of its rows: of q_i,
// dO_i, edge_query_i and dE_i, of the sums for both gradients, and of the U rows k_j, v_j and
// edge_e that are gathered at a time. kPlain: values are as wide as keys, there are no edge
// features and no gradient of attention weights, and heads are no wider than the lanes.
template <class T, int V, int K, bool kPlain>
GK_KERNEL_BLOCKS(kThreads, (kBlocks<T, V, K, kPlain, false>))
by_destination(GK_CONSTANT Call call) {
  using A = Sum<T>;
  constexpr int U = sizeof(T) == 8 ? (kPlain ? 2 : 1) : kPlain ? kGathered<K> : 2;
  GK_SHARED_MEMORY(shared);
  DotLanes<V, K, kPlain> lanes(call.layout);
  const Task task(call, lanes);
  if (task.longest < 0) return;
  const Item& item = task.item;
  const Board<A> board(shared, lanes, kDotTables);
  const bool with_edge = !kPlain && call.layout.features > 0;
  const int parts = kPlain ? 1 : call.layout.parts;
  const bool ids = call.dropout.seed || with_edge || (!kPlain && call.grad_alpha);
  const DotRows<T, V, K> from(call.scores, call.layout.features);
  const Rows<T, V, K> from_v(call.v), grads(call.grad), edge_grads(call.edge_grad);
  const Mask<A> mask(call.dropout);

  for (int part = 0; part < parts; ++part) {
    // The row's own: fields (for every edge), q_i and edge_query_i, scaled, dO_i and dE_i.
    lanes.enter(part);
    const Source<T, V, K> keys(from.k, lanes), values(from_v, lanes.values);
    const Source<T, V, K> edges(from.edge, lanes.shared_features);
    const FieldSource<A, V, K> fields(call.fields, lanes);
    Fields<A> f[U][K];
    if (item.there) fields.load(int32_t(item.row), f[0]);
    each_value<U, K>([&](int u, int k) { f[u][k] = f[0][k]; });
    A q_i[K][V], query_i[K][V], grad[K][V], edge_grad[K][V];
    from.q.get(item.row, item.there, lanes, q_i);
    from.queries.get(item.row, item.there, lanes.features, query_i);
    grads.get(item.row, item.there, lanes.values, grad);
    edge_grads.get(item.row, item.there, lanes.features, edge_grad);
    scale_by(from.scale, q_i);
    scale_by(from.scale, query_i);
    QuerySums<T, V, K> sums;

    task.each_board(call, lanes, board, ids, [&](int base, int n, int steps) {
      mask.post(call.dropout, lanes, board, task.draws(call, board, base), n);
      const auto add = [&](auto whole, int e) {
        constexpr bool kWhole = decltype(whole)::value;
        // Gather rows.
        Raw<T, V> key_rows[U][K], value_rows[U][K], edge_rows[U][K];
        keys.template load<kWhole>(board.nodes, e, n, key_rows);
        values.template load<kWhole>(board.nodes, e, n, value_rows);
        if (with_edge) edges.template load<kWhole>(board.ids, e, n, edge_rows);

        // Score, <dO_i, v_j> and <dE_i, edge_e>.
        A logits[U][K], gains[U][K], w[U][K], dl[U][K];
        each_value<U, K>([&](int u, int k) {
          A row[V];
          key_rows[u][k].get(row);
          logits[u][k] = dot(q_i[k], row);
          value_rows[u][k].get(row);
          gains[u][k] = dot(grad[k], row);
          if (with_edge) {
            edge_rows[u][k].get(row);
            logits[u][k] += dot(query_i[k], row);
            gains[u][k] += dot(edge_grad[k], row);
          }
          if (!kPlain && k == 0 && call.layout.parts > 1 && e + u < n) {
            const int64_t i = item.row, j = board.nodes[e + u], id = board.ids[e + u];
            logits[u][k] += from.other_parts(i, j, id, lanes, part);
            gains[u][k] += from.other_gain(grads, from_v, edge_grads, i, j, id, lanes, part);
          }
        });
        edge_terms<kPlain, kWhole>(call, lanes, f, board, e, n, logits, gains, w, dl);

        // Add the rows, and leave the terms.
        each_value<U, K>([&](int u, int k) {
          A row[V];
          key_rows[u][k].get(row);
          GK_UNROLL
          for (int v = 0; v < V; ++v) sums.first[k][v] += dl[u][k] * row[v];
          if (!with_edge) return;
          edge_rows[u][k].get(row);
          GK_UNROLL
          for (int v = 0; v < V; ++v) sums.second[k][v] += dl[u][k] * row[v];
          if (!call.edge_terms || e + u >= n || part != 0 || !lanes.leads(k)) return;
          const A terms[2] = {from.scale * dl[u][k], w[u][k]};
          const int64_t at = (item.begin + base + e + u) * call.layout.heads;
          store<A, 2>(
              static_cast<A*>(call.edge_terms) + 2 * (at + lanes.first_head + lanes.head_of(k)),
              terms);
        });
      };
      each_gathered<U>(kPlain ? lanes.least(n) : 0, steps, add);
    });
    scale_by(from.scale, sums.first);
    scale_by(from.scale, sums.second);
    if (item.there) put(call, item, lanes, sums);
  }
}

// By source. A group of lanes has an item (edge_loop.h), a lane K vectors of its rows: of k_j, v_j
// and the sums for their gradients, and of the U rows q_i, dO_i, edge_query_i, dE_i and edge_e that
// are gathered at a time.
template <class T, int V, int K, bool kPlain>
GK_KERNEL_BLOCKS(kThreads, (kBlocks<T, V, K, kPlain, true>))
by_source(GK_CONSTANT Call call) {
  using A = Sum<T>;
  constexpr int U = (K > 1 || !kPlain ? 2 : 4) / (sizeof(T) == 8 ? 2 : 1);
  GK_SHARED_MEMORY(shared);
  DotLanes<V, K, kPlain> lanes(call.layout);
  const Task task(call, lanes);
  if (task.longest < 0) return;
  const Item& item = task.item;
  const Board<A> board(shared, lanes, kDotTables);
  const bool with_edge = !kPlain && call.layout.features > 0;
  const int parts = kPlain ? 1 : call.layout.parts;
  const bool ids = call.dropout.seed || with_edge || (!kPlain && call.grad_alpha);
  const DotRows<T, V, K> from(call.scores, call.layout.features);
  const Rows<T, V, K> from_v(call.v), from_grad(call.grad), from_edge_grad(call.edge_grad);
  const Mask<A> mask(call.dropout);

  for (int part = 0; part < parts; ++part) {
    lanes.enter(part);
    const Source<T, V, K> qs(from.q, lanes), grads(from_grad, lanes.values);
    const Source<T, V, K> queries(from.queries, lanes.features);
    const Source<T, V, K> edge_grads(from_edge_grad, lanes.features);
    const Source<T, V, K> edges(from.edge, lanes.shared_features);
    const FieldSource<A, V, K> fields(call.fields, lanes);
    A k_j[K][V], v_j[K][V];
    from.k.get(item.row, item.there, lanes, k_j);
    from_v.get(item.row, item.there, lanes.values, v_j);
    scale_by(from.scale, k_j);
    KeySums<T, V, K> sums;

    task.each_board(call, lanes, board, ids, [&](int base, int n, int steps) {
      mask.post(call.dropout, lanes, board, task.draws(call, board, base), n);
      const auto add = [&](auto whole, int e) {
        constexpr bool kWhole = decltype(whole)::value;
        // Gather rows and fields.
        Raw<T, V> q_rows[U][K], grad_rows[U][K];
        Raw<T, V> query_rows[U][K], edge_grad_rows[U][K], edge_rows[U][K];
        Fields<A> f[U][K];
        qs.template load<kWhole>(board.nodes, e, n, q_rows);
        grads.template load<kWhole>(board.nodes, e, n, grad_rows);
        GK_UNROLL
        for (int u = 0; u < U; ++u) {
          if (kWhole || e + u < n) fields.load(board.nodes[e + u], f[u]);
        }
        if (with_edge) {
          queries.template load<kWhole>(board.nodes, e, n, query_rows);
          edge_grads.template load<kWhole>(board.nodes, e, n, edge_grad_rows);
          edges.template load<kWhole>(board.ids, e, n, edge_rows);
        }

        // Score, <dO_i, v_j> and <dE_i, edge_e>.
        A logits[U][K], gains[U][K], w[U][K], dl[U][K];
        each_value<U, K>([&](int u, int k) {
          A row[V];
          q_rows[u][k].get(row);
          logits[u][k] = dot(k_j[k], row);
          grad_rows[u][k].get(row);
          gains[u][k] = dot(v_j[k], row);
          if (with_edge) {
            A edge[V];
            edge_rows[u][k].get(edge);
            query_rows[u][k].get(row);
            logits[u][k] += from.scale * dot(row, edge);
            edge_grad_rows[u][k].get(row);
            gains[u][k] += dot(row, edge);
          }
          if (!kPlain && k == 0 && call.layout.parts > 1 && e + u < n) {
            const int64_t i = board.nodes[e + u], j = item.row, id = board.ids[e + u];
            logits[u][k] += from.other_parts(i, j, id, lanes, part);
            gains[u][k] +=
                from.other_gain(from_grad, from_v, from_edge_grad, i, j, id, lanes, part);
          }
        });
        edge_terms<kPlain, kWhole>(call, lanes, f, board, e, n, logits, gains, w, dl);

        // Add the rows.
        each_value<U, K>([&](int u, int k) {
          A row[V];
          q_rows[u][k].get(row);
          GK_UNROLL
          for (int v = 0; v < V; ++v) sums.first[k][v] += dl[u][k] * row[v];
          grad_rows[u][k].get(row);
          GK_UNROLL
          for (int v = 0; v < V; ++v) sums.second[k][v] += w[u][k] * row[v];
        });
      };
      each_gathered<U>(kPlain ? lanes.least(n) : 0, steps, add);
    });
    scale_by(from.scale, sums.first);
    if (item.there) put(call, item, lanes, sums);
  }
}

template <class Sums>
GK_KERNEL(kMergeWarps* kWarp)
merge(GK_CONSTANT Call call) {
  GK_SHARED_MEMORY(shared);
  merge_hub<Sums>(call, shared, [&](Sums& sums, auto& lanes, int64_t row, int, bool writes) {
    if (writes) sums.put(call.first, call.second, row, lanes);
  });
}

struct EdgeCall {
  Edges csr;
  Schedule schedule;
  int heads, features;
  int log2_lanes;      // that an edge has
  Matrix query, grad;  // edge_query and dE [Nd, H * F]
  const void* terms;   // [edges of CSR, H, 2]
  void* grad_edge;     // [E, F] in the user's order
};

// grad_edge from the terms, for each edge the sum over its heads in their order. A warp has an item
// (rows.h), a lane one feature (and those a warp's lanes further on) of U edges at a time.
template <class T>
GK_KERNEL(kThreads)
edge_gradients(GK_CONSTANT EdgeCall call) {
  using A = Sum<T>;
  constexpr int U = 4;
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const Item item = item_of(call.csr, call.schedule, int64_t(blockIdx.x) * kWarps + warp);
  if (!item.there) return;
  const int lanes = 1 << call.log2_lanes, apart = kWarp >> call.log2_lanes;
  const Rows<T, 1, 1> queries(call.query), grads(call.grad);
  for (int f = lane & (lanes - 1); f < call.features; f += lanes) {
    for (int first = lane >> call.log2_lanes; first < item.count; first += U * apart) {
      A sums[U] = {};
      for (int head = 0; head < call.heads; ++head) {
        const int feature = head * call.features + f;
        const A query = queries.at(item.row, feature), grad = grads.at(item.row, feature);
        GK_UNROLL
        for (int u = 0; u < U; ++u) {
          const int64_t e = first + u * apart;
          if (e >= item.count) continue;
          A terms[2];
          load<A, 2>(static_cast<const A*>(call.terms) + 2 * ((item.begin + e) * call.heads + head),
                     terms);
          sums[u] += terms[0] * query + terms[1] * grad;
        }
      }
      GK_UNROLL
      for (int u = 0; u < U; ++u) {
        const int64_t e = first + u * apart;
        if (e >= item.count) continue;
        const int64_t id = __ldg(call.csr.eid + item.begin + e);
        const A value[1] = {sums[u]};
        store<T, 1>(static_cast<T*>(call.grad_edge) + id * call.features + f, value);
      }
    }
  }
}

template <class T>
cudaError_t launch_edge_gradients(const DotDestinations& p, const Plan& plan) {
  if (p.grad_edge == nullptr) return cudaSuccess;  // no edges, or it is not wanted
  EdgeCall call{};
  call.csr = p.csr;
  call.schedule = plan.schedule;
  call.heads = int(p.shape.heads);
  call.features = int(p.scores.features);
  call.log2_lanes = log2_at_least(call.features < kWarp ? call.features : kWarp);
  call.query = p.scores.edge_query;
  call.grad = p.grads.edge_out;
  call.terms = plan.edge_terms;
  call.grad_edge = p.grad_edge;
  const int64_t items = plan.schedule.chunks + p.csr.rows;
  return launch(edge_gradients<T>, (items + kWarps - 1) / kWarps, 1, kThreads, 0, plan.stream,
                call);
}

// Of both sides: run(V, K, call).
template <class T, class Params, class Run>
cudaError_t with_call(const Params& p, const Edges& edges, const Plan& plan, Run run) {
  const bool rows_aligned =
      aligned<T>(p.v.rows) && aligned<T>(p.grads.out) && aligned<T>(p.grads.edge_out);
  return with_dot_call<T, Call>(p, edges, p.v.channels, rows_aligned, plan,
                                [&](auto v, auto k, Call& call) {
                                  call.v = p.v.rows;
                                  call.grad = p.grads.out;
                                  call.edge_grad = p.grads.edge_out;
                                  call.fields = p.fields;
                                  call.grad_alpha = p.grads.alpha;
                                  return run(v, k, call);
                                });
}
bool plain(const Call& call) { return plain(call.layout) && !call.grad_alpha; }

}  // namespace

template <class T>
cudaError_t dot_destinations(const DotDestinations& p, const Plan& plan) {
  Shape values = p.shape;
  values.channels = p.v.channels;
  const bool rows_aligned = in_vectors<T>(p.v.channels) && in_vectors<T>(p.scores.features) &&
                            aligned<T>(p.grads.out) && aligned<T>(p.grads.edge_out);
  cudaError_t error = backward_prologue<T>(values, rows_aligned, Prologue(p), plan.stream);
  if (error != cudaSuccess) return error;

  error = with_call<T>(p, p.csr, plan, [&](auto v, auto k, Call& call) {
    constexpr int V = v(), K = k();
    call.first = p.grad_q;
    call.second = p.grad_edge_query;
    call.edge_terms = plan.edge_terms;
    const cudaError_t failed = launch_items<Sum<T>>(
        plain(call) ? by_destination<T, V, K, true> : by_destination<T, V, K, false>, call,
        kDotTables, plan.stream);
    if (failed != cudaSuccess) return failed;
    return launch_merge<QuerySums<T, V, K>>(merge<QuerySums<T, V, K>>, call, plan.stream);
  });
  return error != cudaSuccess ? error : launch_edge_gradients<T>(p, plan);
}

template <class T>
cudaError_t dot_sources(const DotSources& p, const Plan& plan) {
  return with_call<T>(p, p.csc, plan, [&](auto v, auto k, Call& call) {
    constexpr int V = v(), K = k();
    call.first = p.grad_k;
    call.second = p.grad_v;
    const cudaError_t error =
        launch_items<Sum<T>>(plain(call) ? by_source<T, V, K, true> : by_source<T, V, K, false>,
                             call, kDotTables, plan.stream);
    if (error != cudaSuccess) return error;
    return launch_merge<KeySums<T, V, K>>(merge<KeySums<T, V, K>>, call, plan.stream);
  });
}

template cudaError_t dot_destinations<GK_TYPE>(const DotDestinations&, const Plan&);
template cudaError_t dot_sources<GK_TYPE>(const DotSources&, const Plan&);

}  // namespace cuda
}  // namespace gatkernels
