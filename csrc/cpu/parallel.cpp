#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace gatkernels {
namespace {

constexpr int64_t kTask = 1024;  // rows + edges worth a task of their own
constexpr int64_t kMaxTasks = 1024;
// Of less a second thread costs more than it gives.
constexpr int64_t kSmall = 2048;       // rows + edges
constexpr int64_t kSmallRange = 1024;  // nodes, or blocks of features

struct Chunk {
  int64_t row, begin, end;
};

// First row whose edges and rows before it weigh at least `weight`.
int64_t row_at(const int64_t* rowptr, int64_t rows, int64_t weight) {
  int64_t low = 0, high = rows;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (rowptr[middle] + middle < weight) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace

char* allocate(size_t bytes) {
  const size_t rounded = (bytes + 63) / 64 * 64;
  return static_cast<char*>(std::aligned_alloc(64, rounded == 0 ? 64 : rounded));
}

void release(char* memory) { std::free(memory); }

void want_large_pages(void* memory, size_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kPage = uintptr_t(1) << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)bytes;
#endif
}

Status run_range(int64_t count, int threads, size_t scratch_bytes,
                 Callable<int64_t, int64_t, char*> body) {
  if (count == 0) return Status::kOk;
  if (count < kSmallRange || threads < 1) threads = 1;
  std::atomic<bool> failed{false};
  run_pieces(threads, [&](int64_t piece) {
    char* scratch = allocate(scratch_bytes);
    if (scratch == nullptr) {
      failed = true;
    } else {
      body(count * piece / threads, count * (piece + 1) / threads, scratch);
      release(scratch);
    }
  });
  return failed ? Status::kOutOfMemory : Status::kOk;
}

void run_parts(const int64_t* rowptr, int64_t rows, int parts, int threads,
               Callable<int, int64_t, int64_t> body) {
  const int64_t total = rowptr[rows] + rows;
  const auto run = [&](int part) {
    const int64_t begin = row_at(rowptr, rows, total * part / parts);
    body(part, begin, part + 1 == parts ? rows : row_at(rowptr, rows, total * (part + 1) / parts));
  };
  if (total < kSmall || threads <= 1) {
    for (int part = 0; part < parts; ++part) run(part);
  } else {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int part = 0; part < parts; ++part) run(part);
  }
}

int64_t task_count(const int64_t* rowptr, int64_t rows) {
  return std::max<int64_t>(1, std::min(kMaxTasks, (rowptr[rows] + rows) / kTask));
}

int64_t long_row_limit(const int64_t* rowptr, int64_t rows) { return rowptr[rows] / kChunk; }

Status run_rows(const int64_t* rowptr, int64_t rows, int threads, const RowJob& job) {
  if (rows == 0) return Status::kOk;
  const int64_t total = rowptr[rows] + rows;
  if (total < kSmall || threads < 1) threads = 1;
  const int64_t tasks = task_count(rowptr, rows);

  // All memory is had here: an exception must not leave the threads' region.
  const size_t most = size_t(long_row_limit(rowptr, rows));
  std::vector<int64_t> long_rows(most);
  std::atomic<int64_t> long_count{0};
  std::vector<Chunk> chunks;
  chunks.reserve(2 * most);  // the last one of a row is shorter
  std::vector<int64_t> first_chunk;
  first_chunk.reserve(most + 1);
  char* partials = nullptr;
  std::atomic<bool> failed{false};

  const auto run_task = [&](int64_t task, char* scratch) {
    int64_t begin = row_at(rowptr, rows, total * task / tasks);
    const int64_t end = task + 1 == tasks ? rows : row_at(rowptr, rows, total * (task + 1) / tasks);
    for (int64_t row = begin; row < end; ++row) {
      if (rowptr[row + 1] - rowptr[row] <= kChunk) continue;
      long_rows[size_t(long_count++)] = row;
      if (begin < row) job.rows(task, begin, row, scratch);
      begin = row + 1;
    }
    if (begin < end) job.rows(task, begin, end, scratch);
  };
  const auto split_long_rows = [&] {
    std::sort(long_rows.begin(), long_rows.begin() + long_count);
    for (int64_t k = 0; k < long_count; ++k) {
      const int64_t row = long_rows[size_t(k)];
      first_chunk.push_back(int64_t(chunks.size()));
      for (int64_t edge = rowptr[row]; edge < rowptr[row + 1]; edge += kChunk) {
        const int64_t stop = edge + kChunk;
        chunks.push_back({row, edge, stop < rowptr[row + 1] ? stop : rowptr[row + 1]});
      }
    }
    first_chunk.push_back(int64_t(chunks.size()));
    if (chunks.empty()) return;
    partials = allocate(chunks.size() * job.partial_bytes);
    if (partials == nullptr) failed = true;
  };
  const auto run_chunk = [&](int64_t k, char* scratch) {
    const Chunk& part = chunks[size_t(k)];
    job.chunk(part.row, part.begin, part.end, partials + size_t(k) * job.partial_bytes, scratch);
  };
  const auto merge = [&](int64_t k, char* scratch) {
    const int64_t first = first_chunk[size_t(k)];
    job.merge(long_rows[size_t(k)], k, partials + size_t(first) * job.partial_bytes,
              first_chunk[size_t(k) + 1] - first, scratch);
  };
  if (threads == 1) {  // without a team, as run_pieces
    char* scratch = allocate(job.scratch_bytes);
    if (scratch == nullptr) return Status::kOutOfMemory;
    for (int64_t task = 0; task < tasks; ++task) run_task(task, scratch);
    split_long_rows();
    if (!failed) {
      for (size_t k = 0; k < chunks.size(); ++k) run_chunk(int64_t(k), scratch);
      for (int64_t k = 0; k < long_count; ++k) merge(k, scratch);
    }
    release(scratch);
  } else {
#pragma omp parallel num_threads(threads)
    {
      char* scratch = allocate(job.scratch_bytes);
      if (scratch == nullptr) failed = true;
#pragma omp barrier
      if (!failed) {
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tasks; ++task) run_task(task, scratch);
#pragma omp single
        split_long_rows();
        if (!failed && !chunks.empty()) {
#pragma omp for schedule(dynamic, 1)
          for (int64_t k = 0; k < int64_t(chunks.size()); ++k) run_chunk(k, scratch);
#pragma omp for schedule(dynamic, 1)
          for (int64_t k = 0; k < int64_t(long_count); ++k) merge(k, scratch);
        }
      }
      release(scratch);
    }
  }
  release(partials);
  return failed ? Status::kOutOfMemory : Status::kOk;
}

}  // namespace gatkernels
