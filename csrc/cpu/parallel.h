// Rows over threads, balanced by edges; long rows in segments of a fixed length.
//
// Who computes a row never depends on the number of threads, nor does the order of any sum:
// results are the same bits for every schedule.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../core/params.h"

namespace gatkernels {

constexpr int64_t kSegment = 2048;  // edges; a longer row is split

struct RowJob {
  void* context;
  // Whole rows [begin, end), none longer than kSegment; calls for one task come in order.
  void (*rows)(void* context, int64_t task, int64_t begin, int64_t end, char* scratch);
  // Edges [begin, end) of a long row, into a partial result.
  void (*segment)(void* context, int64_t row, int64_t begin, int64_t end, char* partial,
                  char* scratch);
  // The partial results of the index-th long row, in the order of its edges.
  void (*merge)(void* context, int64_t row, int64_t index, const char* partials, int64_t count,
                char* scratch);
  size_t scratch_bytes;  // per thread
  size_t partial_bytes;  // per segment
};

// How many tasks run_rows makes of these rows, and how many long rows there can be at most.
int64_t task_count(const int64_t* rowptr, int64_t rows);
int64_t long_row_limit(const int64_t* rowptr, int64_t rows);

Status run_rows(const int64_t* rowptr, int64_t rows, int threads, const RowJob& job);

// body(context, part, begin, end) over `parts` runs of rows of about as many rows + edges each.
void run_parts(const int64_t* rowptr, int64_t rows, int parts, int threads, void* context,
               void (*body)(void* context, int part, int64_t begin, int64_t end));

// body(context, begin, end, scratch) over pieces of [0, count).
Status run_range(int64_t count, int threads, void* context,
                 void (*body)(void* context, int64_t begin, int64_t end, char* scratch),
                 size_t scratch_bytes);

// 64-byte aligned memory; null where there is none left.
char* allocate(size_t bytes);
void release(char* memory);

// Asks the system to back a large piece of fresh memory with large pages: a first touch of small
// ones costs as much as the kernels that write them.
void want_large_pages(void* memory, size_t bytes);

}  // namespace gatkernels
