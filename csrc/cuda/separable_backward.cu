// Backward of separable scores, GAT's: one pass over CSC, by sources.
//
// Walking the edges out of j, only rows of the output's gradient are gathered; x_j enters once per
// row, because sum_e alpha m leaky' <dO_i, x_j> = <sum_e alpha m leaky' dO_i, x_j>.
#include "backward.h"
#include "edge_loop.h"
#include "kernels.h"
#include "merge.h"
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
  Matrix x;     // [Ns, H * C]
  Matrix grad;  // [Nd, H * C]
  const void* fields;
  const void* grad_alpha;  // or null
  void* grad_edge;         // or null
  void* partials;
  Matrix grad_x;    // [Ns, H * C]
  Matrix grad_src;  // [Ns, H]
};

// Of a row: sums of alpha m dO over all edges and over those of positive score, and what
// d score_src gets besides rows.
template <class T, int V, int K>
struct SourceSums : RowSums<T, V, K, 2> {
  using Rows = RowSums<T, V, K, 2>;
  using A = Sum<T>;
  A sum = A(0);  // of this lane's head, where lanes are edges

  static constexpr int kValues = Rows::kValues + 1;
  template <class Visit>
  GK_DEVICE void each(Visit visit) {
    Rows::each(visit);
    visit(sum, Rows::kValues);
  }
  GK_DEVICE void absorb(const SourceSums& other) {
    Rows::absorb(other);
    sum += other.sum;
  }
  template <class Call>
  GK_DEVICE void put_partial(const Call& call, const Lane<V, K>& lane, int, int64_t place) const {
    A* sums = Rows::put_partial(call, lane, 0, place);
    if (lane.scores() && lane.first_edge == 0) sums[lane.first_head + lane.head] = sum;
  }
  template <class Call>
  GK_DEVICE void get_partial(const Call& call, const Lane<V, K>& lane, int64_t place) {
    const A* sums = Rows::get_partial(call, lane, place);
    if (lane.scores()) sum = __ldg(sums + lane.first_head + lane.head);
  }
};

// The row of grad_x, and this part's share of <slope all + (1 - slope) positive, x_j>; x_j of a row
// without edges (not used) may not be finite.
template <class T, int V, int K>
GK_DEVICE void finish_part(const Call& call, int64_t row, bool used, bool writes,
                           const Lane<V, K>& lane, const SourceSums<T, V, K>& sums,
                           Sum<T> (&dots)[K]) {
  using A = Sum<T>;
  const A slope = A(call.scores.negative_slope);
  A x[K][V];
  Rows<T, V, K>(call.x).get(row, used, lane, x);
  each_value<K, V>([&](int k, int v) {
    dots[k] += (slope * sums.of[0][k][v] + (A(1) - slope) * sums.of[1][k][v]) * x[k][v];
  });
  if (writes) {
    put_row<T, V, K>(static_cast<T*>(call.grad_x.data) + row * call.grad_x.stride, lane,
                     sums.of[0]);
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

// A group of lanes has an item (edge_loop.h). While edges are scored a lane has one head of every
// edges_apart-th run of kScored edges; while rows are added it has K vectors of the row.
template <class T, int V, int K>
GK_KERNEL_BLOCKS(kThreads, (kBlocks<T, V, K>))
backward(GK_CONSTANT Call call) {
  using A = Sum<T>;
  constexpr int U = kGathered<K>;
  GK_SHARED_MEMORY(shared);
  Lane<V, K> lane(call.layout);
  const Task task(call, lane);
  if (task.longest < 0) return;
  const Item& item = task.item;
  const Board<A> board(shared, lane, kTables);
  const int head = lane.first_head + lane.head;
  const int64_t all_heads = call.layout.heads;
  const bool ids = call.dropout.seed || call.grad_edge || call.grad_alpha || call.scores.edge;
  const GatScorer<A> scorer(call.scores, call.layout.heads, head);
  const A score_src = item.there && lane.scores() ? scorer.src_of(item.row) : A(0);
  const A* fields = static_cast<const A*>(call.fields) + 4 * head;
  const A* grad_alpha = static_cast<const A*>(call.grad_alpha);
  A* grad_edge = static_cast<A*>(call.grad_edge);
  const Mask<A> mask(call.dropout);
  const Rows<T, V, K> x(call.x);
  const int own = lane.head * board.pitch;  // of this lane's weights
  const int apart = kScored * lane.edges_apart, start = kScored * lane.first_edge;

  A dots[K] = {}, sum = A(0);
  for (int part = 0; part < call.layout.parts; ++part) {
    lane.enter(part);
    const Source<T, V, K> grads(Rows<T, V, K>(call.grad), lane);
    SourceSums<T, V, K> sums;
    A x_row[K][V];
    x.get(item.row, item.there && grad_edge != nullptr, lane, x_row);
    task.each_board(call, lane, board, ids, [&](int base, int n, int steps) {
      mask.post(call.dropout, lane, board, task.draws(call, board, base), n);

      // Score the edges: their weights, and what does not come from rows.
      for (int e = start; e < steps && lane.scores(); e += apart) {
        int32_t node[kScored], id[kScored];
        Fields<A> gathered[kScored];
        A w[kScored], positive[kScored];
        load_plain(board.nodes + e, node);
        load_plain(board.ids + e, id);
        if (call.dropout.seed) load_plain(board.weights + own + e, w);
        GK_UNROLL
        for (int i = 0; i < kScored; ++i) {
          gathered[i] = {};
          if (e + i < n) gathered[i] = load_fields(fields + int64_t(node[i]) * all_heads * 4);
        }
        GK_UNROLL
        for (int i = 0; i < kScored; ++i) {
          const A factor = call.dropout.seed ? w[i] : A(1);
          w[i] = positive[i] = A(0);
          if (e + i >= n) continue;
          const A(&f)[4] = gathered[i].values;
          const A s = scorer.score(score_src + f[kScoreDst], id[i]);
          const A slope = scorer.logit_slope(s);
          const A alpha = exp_below(scorer.logit(s), f[kTop]) * f[kInverse];
          w[i] = alpha * factor;
          if (s > A(0)) positive[i] = w[i];
          const int64_t at = int64_t(id[i]) * all_heads + head;
          A rest = -slope * alpha * f[kDelta];
          if (grad_alpha) rest += slope * w[i] * __ldg(grad_alpha + at);
          if (grad_edge && part == 0) grad_edge[at] = rest;
          sums.sum += rest;
        }
        store_plain(board.weights + own + e, w);
        store_plain(board.positive + own + e, positive);
      }
      __syncwarp();

      // Gather and add the rows; alpha m leaky' <dO_i, x_j> of each edge, where it is asked for.
      const int count = lane.least(n);
      each_gathered<U>(grad_edge ? 0 : count, steps, [&](auto whole, int e) {
        Raw<T, V> rows[U][K];
        grads.template load<decltype(whole)::value>(board.nodes, e, n, rows);
        add_rows(rows, board, lane, e, true, sums.of[0], sums.of[1]);
        if (decltype(whole)::value || !grad_edge) return;
        GK_UNROLL
        for (int u = 0; u < U; ++u) {
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
            const A positive = board.positive[at], rest = board.weights[at] - positive;
            const int64_t id = board.ids[e + u];
            grad_edge[id * all_heads + lane.first_head + lane.head_of(k)] +=
                (positive + rest * scorer.slope) * gain[k];
          }
        }
      });
    });
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
  GK_SHARED_MEMORY(shared);
  using Sums = SourceSums<T, V, K>;
  Sum<T> dots[K] = {};
  merge_hub<Sums>(call, shared, [&](Sums& sums, auto& lane, int64_t row, int part, bool writes) {
    finish_part(call, row, true, writes, lane, sums, dots);
    if (part == call.layout.parts - 1) finish_row(call, row, writes, lane, sums.sum, dots);
  });
}

}  // namespace

template <class T>
cudaError_t gat_destinations(const GatDestinations& p, const Plan& plan) {
  Prologue prologue(p);
  prologue.scores = p.scores;
  prologue.out_pos = p.out_pos;
  prologue.grad_dst = p.grad_dst;
  return backward_prologue<T>(p.shape, aligned<T>(p.grad), prologue, plan.stream);
}

template <class T>
cudaError_t gat_sources(const GatSources& p, const Plan& plan) {
  const bool rows_aligned = aligned<T>(p.x) && aligned<T>(p.grad) && aligned<T>(p.grad_x);
  const auto run = [&](auto v, auto k) {
    const Layout layout = make_layout(p.shape, v, k, plan.most_heads);
    Call call = call_of<Call>(p, p.csc, plan.schedule, layout);
    call.x = p.x;
    call.grad = p.grad;
    call.fields = p.fields;
    call.grad_alpha = p.grad_alpha;
    call.grad_edge = p.grad_edge;
    call.partials = plan.partials;
    call.grad_x = p.grad_x;
    call.grad_src = p.grad_src;
    const cudaError_t failed =
        launch_items<Sum<T>>(backward<T, v(), k()>, call, kTables, plan.stream);
    if (failed != cudaSuccess) return failed;
    return launch_merge<SourceSums<T, v(), k()>>(merge<T, v(), k()>, call, plan.stream);
  };
  const cudaError_t error = with_vectors<T, kShare>(p.shape, rows_aligned, plan.most_heads, run);
  if (error != cudaSuccess || !p.att_src) return error;
  return node_score_gradients<T>(p, plan);
}

template cudaError_t gat_destinations<GK_TYPE>(const GatDestinations&, const Plan&);
template cudaError_t gat_sources<GK_TYPE>(const GatSources&, const Plan&);

}  // namespace cuda
}  // namespace gatkernels
