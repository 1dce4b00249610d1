// How kernels are launched: for which vectors, and with what grid.
#pragma once
#include <type_traits>

#include "layout.h"
#include "plan.h"
#include "platform.h"

namespace gatkernels {
namespace cuda {

template <int kValue>
using Number = std::integral_constant<int, kValue>;

inline bool aligned(const void* p, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride_bytes % 16 == 0;
}
template <class T>
bool aligned(const Matrix& m) {
  return aligned(m.data, m.stride * int64_t(sizeof(T)));
}

// The most values of a row that a lane takes: in GAT, and in GATv2, which keeps more rows at hand.
constexpr int kShare = 16, kShare2 = 8;

// Calls run(Number<V>, Number<K>) for rows of this shape: 128-bit vectors where no vector spans two
// heads and every row begins at 16 bytes, else single values. A lane takes at most kMost values, of
// a tile of at most most_heads heads.
template <class T, int kMost, class Run>
cudaError_t with_vectors(const Shape& shape, bool rows_aligned, int64_t most_heads, Run run) {
  // features are counted in 31 bits, the bytes of a row in 32
  const int64_t most = sizeof(T) > 2 ? 0xFFFFFFFF / int64_t(sizeof(T)) : 0x7FFFFFFF;
  if (shape.heads * shape.channels > most) return cudaErrorInvalidConfiguration;
  constexpr int V = 16 / int(sizeof(T));
  constexpr int K = kMost / V < 1 ? 1 : kMost / V;
  if (!rows_aligned || shape.channels == 0 || shape.channels % V != 0) {
    return run(Number<1>(), Number<4>());
  }
  if constexpr (sizeof(T) == 8) {
    return run(Number<V>(), Number<2>());
  } else {
    const int64_t heads = shape.heads < most_heads ? shape.heads : most_heads;
    const int64_t slots = heads << log2_at_least(shape.channels / V);
    if (slots <= 32) return run(Number<V>(), Number<1>());
    if constexpr (K >= 4) {
      if (slots > 64) return run(Number<V>(), Number<4>());
    }
    return run(Number<V>(), Number<(K < 2 ? K : 2)>());
  }
}

template <class Kernel, class Call>
cudaError_t launch(Kernel kernel, int64_t blocks, int64_t tiles, int threads, int64_t shared,
                   cudaStream_t stream, const Call& call) {
  if (blocks == 0 || tiles == 0) return cudaSuccess;
  if (blocks > 0x7FFFFFFF || tiles > 0xFFFF) return cudaErrorInvalidConfiguration;
  const dim3 grid{unsigned(blocks), unsigned(tiles), 1};
  GK_LAUNCH(kernel, grid, dim3(unsigned(threads)), size_t(shared), stream, call);
  return cudaGetLastError();
}

// What every kernel over edges reads, the scorer's too.
template <class Call, class Params>
Call call_of(const Params& p, const Edges& edges, const Schedule& schedule,
             const decltype(Call::layout)& layout) {
  Call call{};
  call.edges = edges;
  call.schedule = schedule;
  call.layout = layout;
  call.scores = p.scores;
  call.dropout = p.scores.dropout;
  return call;
}

// A kernel over the items of a graph's rows, with a board of so many tables for each group.
template <class A, class Call>
cudaError_t launch_items(void (*kernel)(Call), const Call& call, int tables, cudaStream_t stream) {
  const int groups = kThreads >> call.layout.log2_group;
  const int64_t items = call.schedule.chunks + call.edges.rows;
  const int64_t shared = int64_t(groups) * BoardSize(call.layout).template bytes<A>(tables);
  return launch(kernel, (items + groups - 1) / groups, call.layout.tiles, kThreads, shared, stream,
                call);
}

}  // namespace cuda
}  // namespace gatkernels
