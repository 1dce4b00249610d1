// The gradient of an attention vector: sums over all rows, first of a block's, then of all blocks'.
#pragma once
#include "launch.h"
#include "rows.h"

namespace gatkernels {
namespace cuda {

// Bytes of shared memory that add_block takes for sums of this kind.
template <class Sums>
constexpr int64_t block_table() {
  return int64_t(kWarps) * Sums::kValues * kWarp * int64_t(sizeof(typename Sums::A));
}

// The sums of the first group's lanes <- those of all groups of the block: of each warp, then of
// its warps. Every thread of the block comes here.
template <class Sums, class Lanes, class A>
GK_DEVICE void add_block(Sums& sums, const Lanes& lane, A* table) {
  sums.each([&](A& value, int) {
    for (int apart = lane.group_lanes; apart < kWarp; apart *= 2) {
      value += __shfl_xor_sync(kFull, value, apart);
    }
  });
  const int warp = int(threadIdx.x) / kWarp;
  __syncthreads();
  sums.each([&](A& value, int i) {
    table[(warp * Sums::kValues + i) * kWarp + int(threadIdx.x) % kWarp] = value;
  });
  __syncthreads();
  if (int(threadIdx.x) >= lane.group_lanes) return;
  sums.each([&](A& value, int i) {
    for (int from = 1; from < kWarps; ++from) {
      value += table[(from * Sums::kValues + i) * kWarp + int(threadIdx.x)];
    }
  });
}

// The rows of att_parts added up. A block has kWarp features and all rows; a warp has a run of the
// rows, a lane one feature.
constexpr int kSumWarps = 16, kRowsAtOnce = 4;

struct SumCall {
  const void* parts;
  void* sum;
  int64_t rows, width;
};

template <class A>
GK_KERNEL(kSumWarps* kWarp)
sum_rows(GK_CONSTANT SumCall call) {
  GK_SHARED_MEMORY(shared);
  A* table = reinterpret_cast<A*>(shared);
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int64_t feature = int64_t(blockIdx.x) * kWarp + lane;
  const int64_t run = (call.rows + kSumWarps - 1) / kSumWarps;
  const int64_t end = (warp + 1) * run < call.rows ? (warp + 1) * run : call.rows;
  const A* parts = static_cast<const A*>(call.parts) + feature;
  A sum = A(0);
  int64_t row = warp * run;
  for (; row + kRowsAtOnce <= end && feature < call.width; row += kRowsAtOnce) {
    A part[kRowsAtOnce];
    GK_UNROLL
    for (int i = 0; i < kRowsAtOnce; ++i) part[i] = __ldg(parts + (row + i) * call.width);
    GK_UNROLL
    for (int i = 0; i < kRowsAtOnce; ++i) sum += part[i];
  }
  for (; row < end && feature < call.width; ++row) sum += __ldg(parts + row * call.width);
  table[warp * kWarp + lane] = sum;
  __syncthreads();
  if (warp != 0 || feature >= call.width) return;
  for (int from = 1; from < kSumWarps; ++from) sum += table[from * kWarp + lane];
  static_cast<A*>(call.sum)[feature] = sum;
}

// sum [width] <- the first `blocks` rows of the plan's att_parts
template <class A>
cudaError_t sum_parts(const Plan& plan, void* sum, int64_t blocks, int64_t width) {
  SumCall call{};
  call.parts = plan.att_parts;
  call.sum = sum;
  call.rows = blocks;
  call.width = width;
  return launch(sum_rows<A>, (width + kWarp - 1) / kWarp, 1, kSumWarps * kWarp,
                kSumWarps * kWarp * int64_t(sizeof(A)), plan.stream, call);
}

}  // namespace cuda
}  // namespace gatkernels
