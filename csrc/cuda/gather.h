// The edges that a group of lanes works on at a time, posted in shared memory for all of its lanes,
// and the rows that they gather.
#pragma once
#include "rows.h"

namespace gatkernels {
namespace cuda {

template <class A>
struct Board {
  int pitch;
  int32_t *nodes, *ids;
  A *weights, *positive;  // [heads, pitch] each; weights of positive scores

  template <int V, int K>
  GK_DEVICE Board(unsigned char* shared, const Lane<V, K>& lane, int tables) {
    const BoardSize size(lane.layout);
    pitch = size.pitch;
    nodes = reinterpret_cast<int32_t*>(shared + lane.group * size.template bytes<A>(tables));
    ids = nodes + pitch;
    weights = reinterpret_cast<A*>(ids + pitch);
    positive = weights + size.heads * pitch;
  }
  // Every lane of the warp comes here, with the edge it has read.
  template <int V, int K>
  GK_DEVICE void post(const Lane<V, K>& lane, Edge edge) const {
    __syncwarp();  // what was posted before has been read
    nodes[lane.lane] = edge.node;
    ids[lane.lane] = edge.id;
    __syncwarp();
  }
};

// The rows of a matrix as a lane gathers them; its vectors that are none read zeros.
template <class T, int V, int K>
struct Source {
  const unsigned char* from[K];
  uint32_t stride[K];  // in bytes, so that an address is one multiplication

  GK_DEVICE Source(const Rows<T, V, K>& rows, const Lane<V, K>& lane) {
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      const bool has = lane.has(k);
      const void* start = has ? static_cast<const void*>(rows.data + lane.feature[k]) : zeros;
      from[k] = static_cast<const unsigned char*>(start);
      stride[k] = has ? uint32_t(rows.stride * int64_t(sizeof(T))) : 0;
    }
  }
  GK_DEVICE void load(int32_t node, Raw<T, V> (&to)[K]) const {
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      to[k].load(reinterpret_cast<const T*>(from[k] + uint64_t(uint32_t(node)) * stride[k]));
    }
  }
  // The rows of U posted edges from e on; zeros from n on, unless all of them are known to be
  // there.
  template <bool kWhole = false, int U>
  GK_DEVICE void load(const int32_t* nodes, int e, int n, Raw<T, V> (&to)[U][K]) const {
    int32_t node[U];
    load_plain(nodes + e, node);
    GK_UNROLL
    for (int u = 0; u < U; ++u) {
      if (kWhole || e + u < n) {
        load(node[u], to[u]);
      } else {
        GK_UNROLL
        for (int k = 0; k < K; ++k) to[u][k] = Raw<T, V>();
      }
    }
  }
};

// The fields of nodes, of the head of each of a lane's vectors; zeros where there is no such head.
template <class A, int V, int K>
struct FieldSource {
  const unsigned char* from[K];
  uint32_t stride[K];  // in bytes

  GK_DEVICE FieldSource(const void* fields, const Lane<V, K>& lane) {
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      const bool has = lane.head_of(k) < lane.tile_heads;
      const int head = lane.first_head + lane.head_of(k);
      from[k] = has ? static_cast<const unsigned char*>(fields) + 4 * int64_t(sizeof(A)) * head
                    : reinterpret_cast<const unsigned char*>(zeros);
      stride[k] = has ? uint32_t(4 * sizeof(A)) * uint32_t(lane.layout.heads) : 0;
    }
  }
  GK_DEVICE void load(int32_t node, Fields<A> (&to)[K]) const {
    GK_UNROLL
    for (int k = 0; k < K; ++k) {
      to[k] =
          load_fields(reinterpret_cast<const A*>(from[k] + uint64_t(uint32_t(node)) * stride[k]));
    }
  }
};

// all += w row, and positive += w row of positive scores where `pair`, over U edges from e on.
template <int U, class T, int V, int K>
GK_DEVICE void add_rows(const Raw<T, V> (&rows)[U][K], const Board<Sum<T>>& board,
                        const Lane<V, K>& lane, int e, bool pair, Sum<T> (&all)[K][V],
                        Sum<T> (&positive)[K][V]) {
  using A = Sum<T>;
  GK_UNROLL
  for (int k = 0; k < K; ++k) {
    const int at = lane.weight_of(k) * board.pitch + e;
    A weight[U], positive_weight[U];
    load_plain(board.weights + at, weight);
    if (pair) load_plain(board.positive + at, positive_weight);
    GK_UNROLL
    for (int u = 0; u < U; ++u) {
      A values[V];
      rows[u][k].get(values);
      GK_UNROLL
      for (int v = 0; v < V; ++v) all[k][v] += weight[u] * values[v];
      if (!pair) continue;
      GK_UNROLL
      for (int v = 0; v < V; ++v) positive[k][v] += positive_weight[u] * values[v];
    }
  }
}

}  // namespace cuda
}  // namespace gatkernels
