// GATv2 backward: a pass over CSR for grad_dst and grad_att, a pass over CSC for grad_src. Per
// edge, with dl = alpha (m <dO, x_src> - delta):
//   grad_dst += dl att leaky'(u),  grad_att += dl leaky(u),
//   grad_src += dl att leaky'(u) + alpha m dO,              u = x_src + x_dst + edge.
#include "att_parts.h"
#include "backward.h"
#include "gather.h"
#include "gatv2.h"
#include "gatv2_sums.h"
#include "kernels.h"
#include "merge.h"

namespace gatkernels {
namespace cuda {
namespace {

constexpr int kTables = 1;  // dropout factors

struct Call {
  Edges edges;
  Schedule schedule;
  Layout layout;
  RowwiseScores scores;
  Draw dropout;
  Matrix x;     // [Ns, H * C]
  Matrix grad;  // [Nd, H * C]
  const void* fields;
  const void* grad_alpha;  // or null
  void* partials;
  void* result;     // [rows, H * C]: grad_dst or grad_src
  void* grad_edge;  // [E, H * C], or null; by destination only
  void* att_parts;  // [blocks, H * C]; by destination only
};

// The terms of U edges from e on: w = alpha m and dl, from this lane's shares of their logits and
// of <dO, x>. Every lane of the warp comes here; zeros where there is no edge.
template <bool kPlain, bool kWhole, int U, class A, int V, int K>
GK_DEVICE void edge_terms(const Call& call, const Lane<V, K>& lane, const Fields<A> (&f)[U][K],
                          const Board<A>& board, int e, int n, A (&logits)[U][K], A (&gains)[U][K],
                          A (&w)[U][K], A (&dl)[U][K]) {
  lane.add_channels_of_each(logits);
  lane.add_channels_of_each(gains);
  GK_UNROLL
  for (int k = 0; k < K; ++k) {
    A factors[U];
    if (call.dropout.seed) {
      load_plain(board.weights + lane.weight_of(k) * board.pitch + e, factors);
    }
    GK_UNROLL
    for (int u = 0; u < U; ++u) {
      w[u][k] = dl[u][k] = A(0);
      if (!kWhole && e + u >= n) continue;
      const A(&field)[4] = f[u][k].values;
      const A alpha = exp_below(logits[u][k], field[kTop]) * field[kInverse];
      A outer = gains[u][k];
      if (!kPlain && call.grad_alpha && lane.head_of(k) < lane.tile_heads) {
        outer += __ldg(static_cast<const A*>(call.grad_alpha) +
                       int64_t(board.ids[e + u]) * call.layout.heads + lane.first_head +
                       lane.head_of(k));
      }
      w[u][k] = call.dropout.seed ? alpha * factors[u] : alpha;
      dl[u][k] = w[u][k] * outer - alpha * field[kDelta];
    }
  }
}

// Blocks on a multiprocessor that registers leave room for without spilling.
template <class T, int V, int K, bool kPlain>
constexpr int kBlocks = sizeof(T) == 8 || !kPlain ? 1
                        : V == 4 && K == 1        ? 4
                                                  : 3;

// By destination. Blocks go through the items in strides, each with its own sums for grad_att.
// kPlain: without edge features or a gradient of attention weights, and heads no wider than the
// lanes.
template <class T, int V, int K, bool kPlain>
GK_KERNEL_BLOCKS(kThreads, (kBlocks<T, V, K, kPlain>))
by_destination(GK_CONSTANT Call call) {
  using A = Sum<T>;
  constexpr int U = sizeof(T) == 8 ? 2 : kGathered<K>;
  GK_SHARED_MEMORY(shared);
  Lane<V, K> lane(call.layout);
  const Board<A> board(shared, lane, kTables);
  Gatv2Scorer<T, V, K> scorer(call.scores, call.x, call.layout);
  const Rows<T, V, K> grads(call.grad);
  const bool with_edge = !kPlain && call.scores.edge;
  const int parts = kPlain ? 1 : call.layout.parts;
  T* grad_edge = kPlain ? nullptr : static_cast<T*>(call.grad_edge);
  const bool ids = call.dropout.seed || with_edge || (!kPlain && call.grad_alpha);
  const Mask<A> mask(call.dropout);
  const int64_t items = items_of(call.edges, call.schedule);

  for (int part = 0; part < parts; ++part) {
    lane.enter(part);
    scorer.enter(lane);
    const Source<T, V, K> from_x(scorer.x, lane), from_edge(scorer.edge, lane);
    const FieldSource<A, V, K> fields(call.fields, lane);
    AttSums<A, V, K> atts;
    for (int64_t first = int64_t(blockIdx.x) * lane.groups(); first < items;
         first += int64_t(gridDim.x) * lane.groups()) {
      const Item item = item_of(call.edges, call.schedule, first + lane.group);
      const int longest = warp_max(item.there ? item.count : -1);
      if (longest < 0) continue;
      const EdgeReader edges(call.edges, item, ids);
      Fields<A> f[U][K];  // the row's own, for every edge
      if (item.there) fields.load(int32_t(item.row), f[0]);
      GK_UNROLL
      for (int u = 1; u < U; ++u) {
        GK_UNROLL
        for (int k = 0; k < K; ++k) f[u][k] = f[0][k];
      }
      A x_dst[K][V], grad[K][V];
      scorer.dst.get(item.row, item.there, lane, x_dst);
      grads.get(item.row, item.there, lane, grad);
      SlopeSums<A, V, K> slopes;
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

        // U edges from e on; whether all of them are known to be there
        const auto add = [&](auto whole, int e) {
          constexpr bool kWhole = decltype(whole)::value;
          Raw<T, V> rows[U][K], edge_rows[U][K];
          from_x.template load<kWhole>(board.nodes, e, n, rows);
          if (with_edge) from_edge.template load<kWhole>(board.ids, e, n, edge_rows);
          const auto u_of = [&](int u, int k, A(&x)[V], A(&to)[V]) {
            rows[u][k].get(x);
            GK_UNROLL
            for (int v = 0; v < V; ++v) to[v] = x[v] + x_dst[k][v];
            if (with_edge) scorer.add_edge(edge_rows[u][k], to);
          };
          A logits[U][K], gains[U][K], w[U][K], dl[U][K];
          GK_UNROLL
          for (int u = 0; u < U; ++u) {
            GK_UNROLL
            for (int k = 0; k < K; ++k) {
              A x[V], sums[V];
              u_of(u, k, x, sums);
              gains[u][k] = dot(grad[k], x);
              logits[u][k] = scorer.share(k, sums);
            }
            if (!kPlain && call.layout.parts > 1 && e + u < n) {
              const int64_t j = board.nodes[e + u], id = board.ids[e + u];
              logits[u][0] += scorer.other_parts(j, item.row, id, lane, part);
              gains[u][0] += scorer.other_gain(grads, j, item.row, lane, part);
            }
          }
          edge_terms<kPlain, kWhole>(call, lane, f, board, e, n, logits, gains, w, dl);
          GK_UNROLL
          for (int u = 0; u < U; ++u) {
            if (!kWhole && e + u >= n) continue;  // x_dst may not be finite
            GK_UNROLL
            for (int k = 0; k < K; ++k) {
              A x[V], sums[V];
              u_of(u, k, x, sums);
              slopes.add(k, dl[u][k], sums);
              atts.add(k, dl[u][k], sums);
              if (grad_edge && lane.has(k)) {
                const int64_t id = board.ids[e + u];
                A terms[V];
                GK_UNROLL
                for (int v = 0; v < V; ++v) {
                  terms[v] = dl[u][k] * scorer.steepness(k, v, sums[v]);
                }
                store<T, V>(grad_edge + id * call.layout.width() + lane.feature[k], terms);
              }
            }
          }
        };
        const int whole = kPlain ? lane.least(n) : 0;
        int e = 0;
        for (; e + U <= whole; e += U) add(std::true_type(), e);
        for (; e < steps; e += U) add(std::false_type(), e);
      }
      OneRow<T, V, K> result;
      slopes.add_to(result.all, scorer);
      if (item.there) result.put(call, item, lane);
    }

    OneRow<T, V, K> att;
    atts.add_to(att.all, scorer);
    A* parts = static_cast<A*>(call.att_parts) + int64_t(blockIdx.x) * call.layout.width();
    add_block(att, lane, reinterpret_cast<A*>(shared));
    if (int(threadIdx.x) < lane.group_lanes) put_row<A, V, K>(parts, lane, att.all);
    __syncthreads();
  }
}

// By source: the rows of dO and x_dst are gathered.
template <class T, int V, int K, bool kPlain>
GK_KERNEL(kThreads)
by_source(GK_CONSTANT Call call) {
  using A = Sum<T>;
  constexpr int U = (K > 1 ? 2 : 4) / (sizeof(T) == 8 ? 2 : 1);
  GK_SHARED_MEMORY(shared);
  Lane<V, K> lane(call.layout);
  const int64_t first = int64_t(blockIdx.x) * lane.groups();
  const Item item = item_of(call.edges, call.schedule, first + lane.group);
  const int longest = warp_max(item.there ? item.count : -1);
  if (longest < 0) return;
  const Board<A> board(shared, lane, kTables);
  const bool with_edge = !kPlain && call.scores.edge;
  const int parts = kPlain ? 1 : call.layout.parts;
  const EdgeReader edges(call.edges, item,
                         call.dropout.seed || with_edge || (!kPlain && call.grad_alpha));
  Gatv2Scorer<T, V, K> scorer(call.scores, call.x, call.layout);
  const Rows<T, V, K> grads(call.grad);
  const Mask<A> mask(call.dropout);

  for (int part = 0; part < parts; ++part) {
    lane.enter(part);
    scorer.enter(lane);
    const Source<T, V, K> from_grad(grads, lane), from_dst(scorer.dst, lane);
    const Source<T, V, K> from_edge(scorer.edge, lane);
    const FieldSource<A, V, K> fields(call.fields, lane);
    OneRow<T, V, K> result;
    A x[K][V];
    scorer.x.get(item.row, item.there, lane, x);
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

      // U edges from e on; whether all of them are known to be there
      const auto add = [&](auto whole, int e) {
        constexpr bool kWhole = decltype(whole)::value;
        Raw<T, V> grad_rows[U][K], dst_rows[U][K], edge_rows[U][K];
        Fields<A> f[U][K];
        from_grad.template load<kWhole>(board.nodes, e, n, grad_rows);
        from_dst.template load<kWhole>(board.nodes, e, n, dst_rows);
        GK_UNROLL
        for (int u = 0; u < U; ++u) {
          if (kWhole || e + u < n) fields.load(board.nodes[e + u], f[u]);
        }
        if (with_edge) from_edge.template load<kWhole>(board.ids, e, n, edge_rows);
        const auto u_of = [&](int u, int k, A(&to)[V]) {
          dst_rows[u][k].get(to);
          GK_UNROLL
          for (int v = 0; v < V; ++v) to[v] += x[k][v];
          if (with_edge) scorer.add_edge(edge_rows[u][k], to);
        };
        A logits[U][K], gains[U][K], w[U][K], dl[U][K];
        GK_UNROLL
        for (int u = 0; u < U; ++u) {
          GK_UNROLL
          for (int k = 0; k < K; ++k) {
            A grad[V], sums[V];
            grad_rows[u][k].get(grad);
            gains[u][k] = dot(grad, x[k]);
            u_of(u, k, sums);
            logits[u][k] = scorer.share(k, sums);
          }
          if (!kPlain && call.layout.parts > 1 && e + u < n) {
            const int64_t i = board.nodes[e + u], id = board.ids[e + u];
            logits[u][0] += scorer.other_parts(item.row, i, id, lane, part);
            gains[u][0] += scorer.other_gain(grads, item.row, i, lane, part);
          }
        }
        edge_terms<kPlain, kWhole>(call, lane, f, board, e, n, logits, gains, w, dl);
        GK_UNROLL
        for (int u = 0; u < U; ++u) {
          GK_UNROLL
          for (int k = 0; k < K; ++k) {
            A grad[V], sums[V];
            grad_rows[u][k].get(grad);
            u_of(u, k, sums);
            GK_UNROLL
            for (int v = 0; v < V; ++v) {
              result.all[k][v] += dl[u][k] * scorer.steepness(k, v, sums[v]) + w[u][k] * grad[v];
            }
          }
        }
      };
      const int whole = kPlain ? lane.least(n) : 0;
      int e = 0;
      for (; e + U <= whole; e += U) add(std::true_type(), e);
      for (; e < steps; e += U) add(std::false_type(), e);
    }
    if (item.there) result.put(call, item, lane);
  }
}

template <class T, int V, int K>
GK_KERNEL(kMergeWarps* kWarp)
merge(GK_CONSTANT Call call) {
  using A = Sum<T>;
  GK_SHARED_MEMORY(shared);
  const Partials partials(call.schedule, blockIdx.x);
  if (partials.count() == 0) return;
  Lane<V, K> lane(call.layout);
  Item item{};
  item.row = partials.row;
  item.chunk = -1;
  for (int part = 0; part < call.layout.parts; ++part) {
    lane.enter(part);
    OneRow<T, V, K> result;
    const auto place = [&](int i) { return partials.place(i); };
    const bool whole =
        merge_partials(result, call, lane, reinterpret_cast<A*>(shared), partials.count(), place);
    if (whole && int(threadIdx.x) < lane.group_lanes) result.put(call, item, lane);
  }
}

}  // namespace

template <class T>
cudaError_t rowwise_backward(const RowwiseBackward& p, const Plan& plan) {
  using A = Sum<T>;
  const bool rows_aligned = aligned<T>(p.x) && aligned<T>(p.scores.dst) && aligned<T>(p.grad) &&
                            aligned(p.scores.edge, 0) && aligned(p.scores.att, 0);
  Prologue prologue{};
  prologue.csr = p.csr;
  prologue.grad = p.grad;
  prologue.out = p.out;
  prologue.stats = p.stats;
  prologue.alpha = p.alpha;
  prologue.grad_alpha = p.grad_alpha;
  prologue.fields = p.fields;
  cudaError_t error = backward_prologue<T>(p.shape, rows_aligned, prologue, plan.stream);
  if (error != cudaSuccess) return error;

  const auto run = [&](auto v, auto k) {
    constexpr int V = v(), K = k();
    const Layout layout = make_layout(p.shape, V, K, plan.most_heads);
    Call call{p.csr,      plan.csr,    layout,        p.scores,     Draw(p.scores.dropout),
              p.x,        p.grad,      p.fields,      p.grad_alpha, plan.partials,
              p.grad_dst, p.grad_edge, plan.att_parts};
    const int groups = kThreads >> layout.log2_group;
    const int64_t wanted = (call.schedule.chunks + call.edges.rows + groups - 1) / groups;
    const int64_t blocks = wanted < kAttParts ? wanted : kAttParts;
    const int64_t boards = int64_t(groups) * BoardSize(layout).template bytes<A>(kTables);
    const int64_t table = block_table<OneRow<T, V, K>>();
    const bool plain = !p.scores.edge && !p.grad_alpha && layout.parts == 1;
    error = launch(plain ? by_destination<T, V, K, true> : by_destination<T, V, K, false>, blocks,
                   layout.tiles, kThreads, boards > table ? boards : table, plan.stream, call);
    if (error != cudaSuccess) return error;
    error = sum_parts<A>(plan, p.grad_att, blocks, layout.width());
    if (error != cudaSuccess) return error;
    error = launch_merge<OneRow<T, V, K>>(merge<T, V, K>, call, plan.stream);
    if (error != cudaSuccess) return error;

    call.edges = p.csc;
    call.schedule = plan.csc;
    call.result = p.grad_src;
    error = launch_items<A>(plain ? by_source<T, V, K, true> : by_source<T, V, K, false>, call,
                            kTables, plan.stream);
    if (error != cudaSuccess) return error;
    return launch_merge<OneRow<T, V, K>>(merge<T, V, K>, call, plan.stream);
  };
  return with_vectors<T, kShare2>(p.shape, rows_aligned, plan.most_heads, run);
}

template cudaError_t rowwise_backward<GK_TYPE>(const RowwiseBackward&, const Plan&);

}  // namespace cuda
}  // namespace gatkernels
