// What every kernel over edges starts from: a group of lanes, the row it works on, and the place of
// each lane in that row.
#pragma once
#include "../core/philox.h"
#include "layout.h"
#include "plan.h"
#include "vector.h"

namespace gatkernels {
namespace cuda {

// A row's edges, or a chunk of a hub's.
struct Item {
  int64_t row, begin;
  int64_t chunk;  // where its partial result goes; -1 for a whole row
  int count;      // edges
  bool there;
};

GK_DEVICE int64_t first_chunk(const Schedule& schedule, int64_t row) {
  return row > 0 ? __ldg(schedule.chunk_end + row - 1) : 0;
}
GK_DEVICE int64_t items_of(const Edges& edges, const Schedule& schedule) {
  return schedule.chunks + edges.rows;
}
GK_DEVICE Item item_of(const Edges& edges, const Schedule& schedule, int64_t i) {
  Item item{0, 0, -1, 0, false};
  const int64_t k = i - schedule.chunks;
  if (k < 0) {
    item.row = __ldg(schedule.chunk_row + i);
    item.there = item.row >= 0;
    item.chunk = i;
    if (!item.there) return item;
    const int64_t end = __ldg(edges.rowptr + item.row + 1);
    item.begin = __ldg(edges.rowptr + item.row);
    item.begin += (i - first_chunk(schedule, item.row)) * schedule.chunk;
    item.count = int(end - item.begin < schedule.chunk ? end - item.begin : schedule.chunk);
  } else if (k < edges.rows) {
    item.row = schedule.order ? __ldg(schedule.order + k) : k;
    item.begin = __ldg(edges.rowptr + item.row);
    item.count = int(__ldg(edges.rowptr + item.row + 1) - item.begin);
    item.there = item.count <= schedule.chunk;  // the chunks of a hub are items of their own
    if (!item.there) item.count = 0;
  }
  return item;
}

// An edge as a group's lane holds it.
struct Edge {
  int32_t node;  // the node at the other end
  int32_t id;    // 0 where nobody asks for it
};
struct EdgeReader {
  const int32_t* col;
  const int32_t* eid;   // or null
  const int32_t* draw;  // or null
  int count;

  GK_DEVICE EdgeReader(const Edges& edges, const Item& item, bool ids)
      : col(edges.col + item.begin),
        eid(ids ? edges.eid + item.begin : nullptr),
        draw(edges.draw ? edges.draw + item.begin : nullptr),
        count(item.count) {}
  GK_DEVICE Edge get(int e) const {
    if (e >= count) return {0, 0};
    return {__ldcs(col + e), eid ? __ldcs(eid + e) : 0};
  }
  // What dropout draws by for edge e
  GK_DEVICE int32_t draw_of(int e, const Edge& edge) const {
    return draw ? __ldg(draw + e) : edge.id;
  }
};

GK_DEVICE int at_most(int n, int limit) { return n < limit ? n : limit; }

// Of lanes that are `from`, 2 from, ... apart, less than `to`: op of their values, in each.
template <class X, class Op>
GK_DEVICE X butterfly(X value, int from, int to, Op op) {
  for (int apart = from; apart < to; apart *= 2) {
    value = op(value, __shfl_xor_sync(kFull, value, apart));
  }
  return value;
}
GK_DEVICE int warp_max(int value) {
  return butterfly(value, 1, kWarp, [](int a, int b) { return b > a ? b : a; });
}

// A lane of a group. It holds K vectors of a row of features ("slots"); where lanes are edges, it
// takes one head of every edges_apart-th edge.
template <int V, int K>
struct Lane {
  const Layout& layout;
  int group_lanes;
  int lane;        // in the group
  int group;       // in the block
  int first_head;  // of the tile
  int tile_heads;  // of this tile: the last one may have fewer
  int head;        // of the tile, where lanes are edges
  int first_edge;  // in the group's edges, where lanes are edges
  int edges_apart;
  int channels;    // of a head
  int head_apart;  // features from a head to the next
  int feature[K];  // of each vector, -1 where it is none

  GK_DEVICE explicit Lane(const Layout& l)
      : layout(l),
        group_lanes(l.group()),
        lane(int(threadIdx.x) & (group_lanes - 1)),
        group(int(threadIdx.x) >> l.log2_group),
        first_head(int(blockIdx.y) * l.tile_heads),
        tile_heads(at_most(l.heads - first_head, l.tile_heads)),
        head(lane & (l.padded_heads() - 1)),
        first_edge(lane >> l.log2_heads),
        edges_apart(group_lanes >> l.log2_heads),
        channels(l.channels),
        head_apart(l.channels) {
    enter(0);
  }
  // The same lane in rows of other channels, at most as many as the layout was made for; or in rows
  // that all heads share.
  GK_DEVICE Lane in_rows_of(int other_channels, bool shared = false) const {
    Lane other = *this;
    other.channels = other_channels;
    other.head_apart = shared ? 0 : other_channels;
    other.enter(0);
    return other;
  }
  // Turns to a part of the heads.
  GK_DEVICE void enter(int part) {
    GK_UNROLL
    for (int k = 0; k < K; ++k) feature[k] = feature_in(k, part);
  }
  GK_DEVICE int feature_in(int k, int part) const {
    const int channel = (part * layout.slots() + slot_of(k)) * V;
    const bool there = head_of(k) < tile_heads && channel < channels;
    return there ? (first_head + head_of(k)) * head_apart + channel : -1;
  }
  GK_DEVICE int slot_of(int k) const { return (k * group_lanes + lane) & (layout.slots() - 1); }

  GK_DEVICE int width() const { return layout.heads * channels; }         // of a row
  GK_DEVICE int groups() const { return kThreads >> layout.log2_group; }  // of a block
  GK_DEVICE bool scores() const { return head < tile_heads; }
  GK_DEVICE bool has(int k) const { return feature[k] >= 0; }
  // The head of a vector, in the tile.
  GK_DEVICE int head_of(int k) const { return (k * group_lanes + lane) >> layout.log2_slots; }
  // The same where there is such a head; one that is there for vectors that are none.
  GK_DEVICE int weight_of(int k) const { return head_of(k) & (layout.padded_heads() - 1); }
  // Whether this lane's vector is the first of its head.
  GK_DEVICE bool leads(int k) const { return head_of(k) < tile_heads && slot_of(k) == 0; }

  template <class X>
  GK_DEVICE X from_lane(X value, int source) const {
    return __shfl_sync(kFull, value, source, group_lanes);
  }
  // Over the lanes that share this lane's head where lanes are edges.
  template <class A>
  GK_DEVICE A add_edges(A value) const {
    return butterfly(value, layout.padded_heads(), group_lanes, [](A a, A b) { return a + b; });
  }
  template <class A>
  GK_DEVICE A max_edges(A value) const {
    return butterfly(value, layout.padded_heads(), group_lanes,
                     [](A a, A b) { return larger(a, b); });
  }
  // The least of the warp's groups' values.
  GK_DEVICE int least(int value) const {
    return butterfly(value, group_lanes, kWarp, [](int a, int b) { return at_most(a, b); });
  }
  // sums[i][k] <- the sum over all vectors of the head of vector k, for each i
  template <class A, int N>
  GK_DEVICE void add_channels_of_each(A (&sums)[N][K]) const {
    if constexpr (K > 1) {
      const int span = layout.log2_slots - layout.log2_group;  // > 0: a head of several vectors
      if (span > 0) {
        GK_UNROLL
        for (int i = 0; i < N; ++i) {
          GK_UNROLL
          for (int k = 0; k < K; k += 2) sums[i][k] = sums[i][k + 1] = sums[i][k] + sums[i][k + 1];
        }
      }
      if constexpr (K > 2) {
        if (span > 1) {
          GK_UNROLL
          for (int i = 0; i < N; ++i) {
            GK_UNROLL
            for (int k = 0; k < K / 2; ++k) {
              sums[i][k] = sums[i][k + K / 2] = sums[i][k] + sums[i][k + K / 2];
            }
          }
        }
      }
    }
    GK_UNROLL
    for (int step = 0; step < 5; ++step) {
      if (step >= layout.log2_slots || step >= layout.log2_group) break;
      GK_UNROLL
      for (int i = 0; i < N; ++i) {
        GK_UNROLL
        for (int k = 0; k < K; ++k) sums[i][k] += __shfl_xor_sync(kFull, sums[i][k], 1 << step);
      }
    }
  }
  template <class A>
  GK_DEVICE void add_channels(A (&sums)[K]) const {
    add_channels_of_each(reinterpret_cast<A(&)[1][K]>(sums));
  }
  // The sum of term(feature) over this lane's features of parts other than `part`.
  template <class Term>
  GK_DEVICE auto over_other_parts(int part, Term term) const {
    decltype(term(0)) sum = 0;
    for (int other = 0; other < layout.parts; ++other) {
      for (int k = 0; k < K; ++k) {
        const int f = feature_in(k, other);
        if (other == part || f < 0) continue;
        for (int v = 0; v < V; ++v) sum += term(f + v);
      }
    }
    return sum;
  }
};

// The rows of a matrix, as the vectors of a lane.
template <class T, int V, int K>
struct Rows {
  const T* data;
  int64_t stride;

  GK_DEVICE explicit Rows(const Matrix& m)
      : data(static_cast<const T*>(m.data)), stride(m.stride) {}
  GK_DEVICE Rows(const void* p, int64_t width) : data(static_cast<const T*>(p)), stride(width) {}

  GK_DEVICE Sum<T> at(int64_t row, int feature) const {
    return widen(data[row * stride + feature]);
  }
  // zeros where there is none
  GK_DEVICE void get(int64_t row, bool there, const Lane<V, K>& lane, Sum<T> (&to)[K][V]) const {
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      GK_UNROLL
      for (int v = 0; v < V; ++v) to[k][v] = Sum<T>(0);
      if (there && lane.has(k)) cuda::load<T, V>(data + row * stride + lane.feature[k], to[k]);
    }
  }
};

template <class T, int V, int K>
GK_DEVICE void put_row(T* row, const Lane<V, K>& lane, const Sum<T> (&from)[K][V]) {
  GK_UNROLL
  for (int k = 0; k < K; ++k) {
    if (lane.has(k)) store<T, V>(row + lane.feature[k], from[k]);
  }
}

template <class A, int V>
GK_DEVICE A dot(const A (&a)[V], const A (&b)[V]) {
  A sum = A(0);
  GK_UNROLL
  for (int v = 0; v < V; ++v) sum += a[v] * b[v];
  return sum;
}

// Edges gathered at a time: enough 128-bit loads in flight, few enough registers.
template <int K>
constexpr int kGathered = K >= 4 ? 2 : 4;
// Consecutive edges that a lane scores at a time, their loads in flight together.
constexpr int kScored = 4;

// Dropout as the contract has it: m_e is 0 or 1 / (1 - p).
template <class A>
struct Mask {
  uint64_t seed;
  uint32_t threshold;
  A scale;
  int first_head;  // to the draws

  GK_DEVICE explicit Mask(const Dropout& draw)
      : seed(draw.seed ? uint64_t(__ldg(draw.seed)) : 0),
        threshold(draw.threshold),
        scale(A(draw.scale)),
        first_head(int(draw.first_head)) {}
  GK_DEVICE A factor(uint32_t word) const { return word >= threshold ? scale : A(0); }
  GK_DEVICE A operator()(int32_t edge, int head) const {
    uint32_t word[4];
    head += first_head;
    philox(seed, uint64_t(uint32_t(edge)), uint64_t(head >> 2), word);
    const uint32_t low = head & 1 ? word[1] : word[0], high = head & 1 ? word[3] : word[2];
    return factor(head & 2 ? high : low);
  }
  // Calls apply(edge, head, m_e) for the n edges whose ids are given and the heads of a tile: each
  // lane draws four heads of an edge at a time.
  template <int V, int K, class Apply>
  GK_DEVICE void each(const Lane<V, K>& lane, const int32_t* ids, int n, Apply apply) const {
    const int from = first_head + lane.first_head, first = from >> 2;
    const int draws = ((from + lane.tile_heads - 1) >> 2) - first + 1;  // per edge
    for (int i = lane.lane; i < n * draws; i += lane.group_lanes) {
      const int e = i / draws, quad = first + i % draws;
      uint32_t word[4];
      philox(seed, uint64_t(uint32_t(ids[e])), uint64_t(quad), word);
      GK_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int head = 4 * quad + j - from;
        if (head >= 0 && head < lane.tile_heads) apply(e, head, factor(word[j]));
      }
    }
  }
  // The factors of a board's n edges, if any are dropped, as its weights; `ids`: what they draw by.
  template <class Board, int V, int K>
  GK_DEVICE void post(const Dropout& draw, const Lane<V, K>& lane, const Board& board,
                      const int32_t* ids, int n) const {
    if (!draw.seed) return;
    each(lane, ids, n,
         [&](int e, int head, A factor) { board.weights[head * board.pitch + e] = factor; });
    __syncwarp();
  }
};

}  // namespace cuda
}  // namespace gatkernels
