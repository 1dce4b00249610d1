// Edges to CSR: a stable counting sort by row.
#pragma once
#include <cstdint>

#include "../core/params.h"

namespace gatkernels {

struct BuildCsr {
  const void* row;    // [edges] node that owns the edge
  const void* other;  // [edges] node at the other end
  bool wide;          // ids are int64, else int32
  int64_t edges;
  int64_t num_rows;
  int64_t num_others;
  bool self_loops;  // drop edges with row == other, append one loop per node
  int threads;
  int64_t* rowptr;  // [num_rows + 1]
  int32_t* col;     // [edges (+ min(num_rows, num_others))]
  int32_t* eid;     // same

  // The same edges by their other ends.
  BuildCsr transposed(int64_t* colptr, int32_t* row_, int32_t* ceid) const {
    return {other, row, wide, edges, num_others, num_rows, self_loops, threads, colptr, row_, ceid};
  }
};

// bad: -1, or the place of an id out of range (plus `edges` if it is in `other`).
Status build_csr(const BuildCsr& p, int64_t* bad);

}  // namespace gatkernels
