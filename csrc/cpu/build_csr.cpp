#include "build_csr.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "parallel.h"

namespace gatkernels {
namespace {

constexpr int64_t kSerial = 1 << 15;  // edges below which one thread is faster

template <class I>
Status build(const BuildCsr& p, int64_t* bad) {
  const I* row = static_cast<const I*>(p.row);
  const I* other = static_cast<const I*>(p.other);
  const int64_t rows = p.num_rows;
  const int64_t loops = p.self_loops ? std::min(rows, p.num_others) : 0;
  // One histogram per block of edges; few enough that they take no more memory than the edges.
  int64_t blocks = p.edges < kSerial ? 1 : std::max(1, p.threads);
  while (blocks > 1 && blocks * rows > 2 * (p.edges + rows)) --blocks;
  auto* counts = reinterpret_cast<int64_t*>(allocate(size_t(blocks * rows) * sizeof(int64_t)));
  if (counts == nullptr) return Status::kOutOfMemory;
  std::atomic<int64_t> first_bad{INT64_MAX};
  const auto report = [&](int64_t place) {
    int64_t seen = first_bad;
    while (place < seen && !first_bad.compare_exchange_weak(seen, place)) {
    }
  };

  run_pieces(blocks, [&](int64_t block) {
    int64_t* count = counts + block * rows;
    std::memset(count, 0, size_t(rows) * sizeof(int64_t));
    const int64_t end = p.edges * (block + 1) / blocks;
    for (int64_t e = p.edges * block / blocks; e < end; ++e) {
      const I r = row[e], o = other[e];
      if (r < 0 || int64_t(r) >= rows) {
        report(e);
        break;
      }
      if (o < 0 || int64_t(o) >= p.num_others) {
        report(p.edges + e);
        break;
      }
      if (!p.self_loops || r != o) ++count[r];
    }
  });
  if (first_bad != INT64_MAX) {
    *bad = first_bad;
    release(reinterpret_cast<char*>(counts));
    return Status::kOk;
  }

  int64_t total = 0;
  for (int64_t r = 0; r < rows; ++r) {
    p.rowptr[r] = total;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t count = counts[block * rows + r];
      counts[block * rows + r] = total;
      total += count;
    }
    if (r < loops) {  // the loop comes last in its row
      p.col[total] = int32_t(r);
      p.eid[total] = int32_t(p.edges + r);
      ++total;
    }
  }
  p.rowptr[rows] = total;

  run_pieces(blocks, [&](int64_t block) {
    int64_t* next = counts + block * rows;
    const int64_t end = p.edges * (block + 1) / blocks;
    for (int64_t e = p.edges * block / blocks; e < end; ++e) {
      const I r = row[e], o = other[e];
      if (p.self_loops && r == o) continue;
      const int64_t at = next[r]++;
      p.col[at] = int32_t(o);
      p.eid[at] = int32_t(e);
    }
  });
  for (int64_t at = total; at < p.edges + loops; ++at) p.col[at] = p.eid[at] = 0;
  release(reinterpret_cast<char*>(counts));
  return Status::kOk;
}

}  // namespace

Status build_csr(const BuildCsr& p, int64_t* bad) {
  *bad = -1;
  return p.wide ? build<int64_t>(p, bad) : build<int32_t>(p, bad);
}

}  // namespace gatkernels
