// Rows over threads, balanced by edges; long rows in chunks of a fixed length.
//
// Who computes a row never depends on the number of threads, nor does the order of any sum:
// results are the same bits for every schedule.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../core/params.h"

namespace gatkernels {

constexpr int64_t kChunk = 2048;  // edges; a longer row is split

// A callable that lives longer than the call it is handed to.
template <class... Args>
class Callable {
  const void* body;
  void (*run)(const void*, Args...);

 public:
  template <class Body>
  Callable(const Body& body_)
      : body(&body_),
        run([](const void* self, Args... args) { (*static_cast<const Body*>(self))(args...); }) {}
  void operator()(Args... args) const { run(body, args...); }
};

struct RowJob {
  // (task, begin, end, scratch): whole rows, none longer than kChunk; those of one task come in
  // order.
  Callable<int64_t, int64_t, int64_t, char*> rows;
  // (row, begin, end, partial, scratch): edges of a long row, into a partial result.
  Callable<int64_t, int64_t, int64_t, char*, char*> chunk;
  // (row, index, partials, count, scratch): the partial results of the index-th long row, in the
  // order of its edges.
  Callable<int64_t, int64_t, char*, int64_t, char*> merge;
  size_t scratch_bytes;  // per thread
  size_t partial_bytes;  // per chunk
};

// How many tasks run_rows makes of these rows, and how many long rows there can be at most.
int64_t task_count(const int64_t* rowptr, int64_t rows);
int64_t long_row_limit(const int64_t* rowptr, int64_t rows);

Status run_rows(const int64_t* rowptr, int64_t rows, int threads, const RowJob& job);

// body(piece) for each of [0, pieces), by as many threads. One needs no team, which would make a
// system call at every barrier.
template <class Body>
void run_pieces(int64_t pieces, const Body& body) {
  if (pieces == 1) return body(0);
#pragma omp parallel for num_threads(int(pieces)) schedule(static, 1)
  for (int64_t piece = 0; piece < pieces; ++piece) body(piece);
}

// body(part, begin, end) over `parts` runs of rows of about as many rows + edges each.
void run_parts(const int64_t* rowptr, int64_t rows, int parts, int threads,
               Callable<int, int64_t, int64_t> body);

// body(begin, end, scratch) over pieces of [0, count).
Status run_range(int64_t count, int threads, size_t scratch_bytes,
                 Callable<int64_t, int64_t, char*> body);

// 64-byte aligned memory; null where there is none left.
char* allocate(size_t bytes);
void release(char* memory);

// Asks the system to back a large piece of fresh memory with large pages: a first touch of small
// ones costs as much as the kernels that write them.
void want_large_pages(void* memory, size_t bytes);

}  // namespace gatkernels
