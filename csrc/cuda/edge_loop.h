// What every kernel over edges begins with, and its loop.
//
// A block has a tile of heads (blockIdx.y) and kWarps warps; a warp has one to four groups of
// lanes, each with an item, that is, a row or a chunk of a hub's; a lane has K vectors of V
// features of that row. The groups of a warp go through their edges in step, as many at a time as a
// group has lanes, until the longest of their items is done.
#pragma once
#include <type_traits>

#include "gather.h"

namespace gatkernels {
namespace cuda {

// What a group works on, and its warp.
struct Task {
  Item item;
  int longest;  // edges of the warp's longest item; negative where none is there

  template <class Call, int V, int K>
  GK_DEVICE Task(const Call& call, const Lane<V, K>& lane, int64_t first_group)
      : item(item_of(call.edges, call.schedule, first_group + lane.group)),
        longest(warp_max(item.there ? item.count : -1)) {}
  // Where a block has one task.
  template <class Call, int V, int K>
  GK_DEVICE Task(const Call& call, const Lane<V, K>& lane)
      : Task(call, lane, int64_t(blockIdx.x) * lane.groups()) {}

  // body(base, n, steps) for the edges from `base` on that the board shows: n of this item, `steps`
  // of the longest. `ids`: whether anybody asks for the edges' ids.
  template <class Call, class A, int V, int K, class Body>
  GK_DEVICE void each_board(const Call& call, const Lane<V, K>& lane, const Board<A>& board,
                            bool ids, Body body) const {
    const EdgeReader edges(call.edges, item, ids);
    Edge next = edges.get(lane.lane);
    for (int base = 0; base < longest; base += lane.group_lanes) {
      board.post(lane, next);
      next = edges.get(base + lane.group_lanes + lane.lane);  // on its way while rows come in
      body(base, at_most(item.count - base, lane.group_lanes),
           at_most(longest - base, lane.group_lanes));
    }
  }
  // What dropout draws by for the edges that a board shows from `base` on.
  template <class Call, class A>
  GK_DEVICE const int32_t* draws(const Call& call, const Board<A>& board, int base) const {
    return call.edges.draw ? call.edges.draw + item.begin + base : board.ids;
  }
};

// add(whole, e) for U edges at a time, from e on, until `steps`; `whole` is a constant that says
// whether all of them are known to be there, as the first `count` are.
template <int U, class Add>
GK_DEVICE void each_gathered(int count, int steps, Add add) {
  int e = 0;
  for (; e + U <= count; e += U) add(std::true_type(), e);
  for (; e < steps; e += U) add(std::false_type(), e);
}

}  // namespace cuda
}  // namespace gatkernels
