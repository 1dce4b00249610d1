// The attention weights of a forward, from its statistics: alpha [E, H] in the user's order.
#pragma once
#include "gat.h"

namespace gatkernels {
namespace GK_ISA {

template <class A, int kHeads>
struct GatAlphaJob {
  using Forward = GatForwardJob<A, A, kHeads>;
  const GatAlpha& p;
  GatForward as_forward;
  char no_features[1];
  Forward forward;

  explicit GatAlphaJob(const GatAlpha& a)
      : p(a),
        as_forward{{a.shape.dtype, a.shape.threads, a.shape.heads, 0},
                   a.csr,
                   a.scores,
                   {nullptr, 0},
                   nullptr,
                   nullptr,
                   nullptr},
        forward(as_forward, no_features) {}

  void run(int64_t row, int64_t begin, int64_t end, GatScratch<A>& t) const {
    const int heads = forward.heads;
    const A* stats = static_cast<const A*>(p.stats) + row * 3 * heads;
    for (int64_t edge = begin; edge < end; edge += kBlock) {
      const int n = int(end - edge < kBlock ? end - edge : kBlock);
      const int32_t* eid = p.csr.eid + edge;
      forward.score(row, edge, n, t, t.top, false);
      forward.exponentials(n, t, stats, t.sum, t.sum_pos, false);
      forward.scores.weigh(t, eid, n, stats + heads, false);
      for (int e = 0; e < n; ++e) {
        std::memcpy(static_cast<A*>(p.alpha) + int64_t(eid[e]) * heads,
                    t.weight + e * forward.scores.stride, size_t(heads) * sizeof(A));
      }
    }
  }
  static void rows(void* context, int64_t begin, int64_t end, char* memory) {
    const auto& job = *static_cast<const GatAlphaJob*>(context);
    GatScratch<A> t(memory, job.forward.heads, 0);
    const int64_t* rowptr = job.p.csr.rowptr;
    for (int64_t row = begin; row < end; ++row) job.run(row, rowptr[row], rowptr[row + 1], t);
  }
  static void segment(void* context, int64_t row, int64_t begin, int64_t end, char*, char* memory) {
    const auto& job = *static_cast<const GatAlphaJob*>(context);
    GatScratch<A> t(memory, job.forward.heads, 0);
    job.run(row, begin, end, t);
  }
  static void merge(void*, int64_t, const char*, int64_t, char*) {}
};

template <class A, int kHeads>
static Status gat_alpha_slot(const GatAlpha& p) {
  using Job = GatAlphaJob<A, kHeads>;
  Job job(p);
  return run_rows(
      p.csr.rowptr, p.csr.rows, p.shape.threads,
      {&job, Job::rows, Job::segment, Job::merge, GatScratch<A>::bytes(p.shape.heads, 0), 0});
}

template <class A>
static Status gat_alpha(const GatAlpha& p) {
#define GK_RUN(kHeads) return gat_alpha_slot<A, kHeads>(p)
  GK_FOR_SLOT(A, p.shape.heads, GK_RUN)
#undef GK_RUN
}

}  // namespace GK_ISA
}  // namespace gatkernels
