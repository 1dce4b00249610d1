// The CPU kernels for Python: convert and throw, nothing else. Pointers come as integers; the one
// caller is gatkernels/_native.py, which owns shapes, strides and lifetimes.
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../cpu/build_csr.h"
#include "../cpu/kernels.h"
#include "../cpu/parallel.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;

namespace gatkernels {
namespace {

using Pointer = uintptr_t;

template <class T>
T* as(Pointer p) {
  return reinterpret_cast<T*>(p);
}
Matrix matrix(Pointer p, int64_t stride) { return {as<void>(p), stride}; }

void check(Status status) {
  if (status == Status::kOutOfMemory) throw std::bad_alloc();
  if (status == Status::kUnsupported) throw std::invalid_argument("gatkernels: unknown dtype code");
}

// Runs a kernel without the GIL.
template <class Kernel>
void run(Kernel kernel) {
  Status status;
  {
    py::gil_scoped_release release;
    status = kernel();
  }
  check(status);
}

bool runs(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx512") {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  }
  if (isa == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return isa == "baseline";
}

Kernels table(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx512") return avx512_kernels();
  if (isa == "avx2") return avx2_kernels();
#endif
  return baseline_kernels();
}

Kernels choose() {
  const char* forced = std::getenv("GATKERNELS_ISA");
  if (forced != nullptr && forced[0] != '\0') {
    const std::string isa = forced;
    if (isa != "avx512" && isa != "avx2" && isa != "baseline") {
      throw std::invalid_argument("GATKERNELS_ISA must be baseline, avx2 or avx512, got " + isa);
    }
    if (!runs(isa)) {
      throw std::invalid_argument("GATKERNELS_ISA asks for " + isa +
                                  ", which this processor does not have");
    }
    return table(isa);
  }
  for (const char* isa : {"avx512", "avx2"}) {
    if (runs(isa)) return table(isa);
  }
  return table("baseline");
}

Edges edges(Pointer rowptr, Pointer col, Pointer eid, int64_t rows) {
  return {as<const int64_t>(rowptr), as<const int32_t>(col), as<const int32_t>(eid), rows};
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  const Kernels kernels = choose();
  m.attr("isa") = kernels.isa;
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif

  m.def("want_large_pages",
        [](Pointer memory, size_t bytes) { want_large_pages(as<void>(memory), bytes); });

  m.def("build_csr", [](Pointer row, Pointer other, bool wide, int64_t edges, int64_t num_rows,
                        int64_t num_others, bool self_loops, int threads, Pointer rowptr,
                        Pointer col, Pointer eid) {
    int64_t bad = -1;
    Status status;
    {
      py::gil_scoped_release release;
      status =
          build_csr({as<const void>(row), as<const void>(other), wide, edges, num_rows, num_others,
                     self_loops, threads, as<int64_t>(rowptr), as<int32_t>(col), as<int32_t>(eid)},
                    &bad);
    }
    check(status);
    return bad;
  });

  m.def("gat_forward", [kernels](int dtype, int threads, int64_t heads, int64_t channels,
                                 Pointer rowptr, Pointer col, Pointer eid, int64_t rows,
                                 Pointer src, int64_t src_stride, Pointer dst, int64_t dst_stride,
                                 Pointer edge, double slope, Pointer seed, double p, Pointer x,
                                 int64_t x_stride, Pointer out, Pointer out_pos, Pointer stats) {
    const GatForward params{{DType(dtype), threads, heads, channels},
                            edges(rowptr, col, eid, rows),
                            {matrix(src, src_stride),
                             matrix(dst, dst_stride),
                             as<const void>(edge),
                             slope,
                             {as<const int64_t>(seed), p}},
                            matrix(x, x_stride),
                            as<void>(out),
                            as<void>(out_pos),
                            as<void>(stats)};
    run([&] { return kernels.gat_forward(params, nullptr); });
  });

  m.def("gat_alpha", [kernels](int dtype, int threads, int64_t heads, Pointer rowptr, Pointer col,
                               Pointer eid, int64_t rows, Pointer src, int64_t src_stride,
                               Pointer dst, int64_t dst_stride, Pointer edge, double slope,
                               Pointer seed, double p, Pointer stats, Pointer alpha) {
    const GatForward params{{DType(dtype), threads, heads, 0},
                            edges(rowptr, col, eid, rows),
                            {matrix(src, src_stride),
                             matrix(dst, dst_stride),
                             as<const void>(edge),
                             slope,
                             {as<const int64_t>(seed), p}},
                            {nullptr, 0},
                            nullptr,
                            nullptr,
                            nullptr};
    const AlphaOut to{as<const void>(stats), as<void>(alpha)};
    run([&] { return kernels.gat_forward(params, &to); });
  });

  m.def("gat_backward",
        [kernels](int dtype, int threads, int64_t heads, int64_t channels, Pointer rowptr,
                  Pointer col, Pointer eid, int64_t num_dst, Pointer colptr, Pointer row,
                  Pointer ceid, int64_t num_src, Pointer src, int64_t src_stride, Pointer dst,
                  int64_t dst_stride, Pointer edge, double slope, Pointer seed, double p, Pointer x,
                  int64_t x_stride, Pointer grad, int64_t grad_stride, Pointer out, Pointer out_pos,
                  Pointer stats, Pointer alpha, Pointer grad_alpha, Pointer packed,
                  int64_t packed_stride, Pointer grad_x, int64_t grad_x_stride, Pointer grad_src,
                  int64_t grad_src_stride, Pointer grad_dst, int64_t grad_dst_stride,
                  Pointer grad_edge) {
          const GatBackward params{{DType(dtype), threads, heads, channels},
                                   edges(rowptr, col, eid, num_dst),
                                   edges(colptr, row, ceid, num_src),
                                   {matrix(src, src_stride),
                                    matrix(dst, dst_stride),
                                    as<const void>(edge),
                                    slope,
                                    {as<const int64_t>(seed), p}},
                                   matrix(x, x_stride),
                                   matrix(grad, grad_stride),
                                   as<const void>(out),
                                   as<const void>(out_pos),
                                   as<const void>(stats),
                                   as<const void>(alpha),
                                   as<const void>(grad_alpha),
                                   matrix(packed, packed_stride),
                                   matrix(grad_x, grad_x_stride),
                                   matrix(grad_src, grad_src_stride),
                                   matrix(grad_dst, grad_dst_stride),
                                   as<void>(grad_edge)};
          run([&] { return kernels.gat_backward(params); });
        });

  m.def("gatv2_forward",
        [kernels](int dtype, int threads, int64_t heads, int64_t channels, Pointer rowptr,
                  Pointer col, Pointer eid, int64_t rows, Pointer dst, int64_t dst_stride,
                  Pointer att, Pointer edge, double slope, Pointer seed, double p, Pointer x,
                  int64_t x_stride, Pointer out, Pointer stats) {
          const Gatv2Forward params{{DType(dtype), threads, heads, channels},
                                    edges(rowptr, col, eid, rows),
                                    {matrix(dst, dst_stride),
                                     as<const void>(att),
                                     as<const void>(edge),
                                     slope,
                                     {as<const int64_t>(seed), p}},
                                    matrix(x, x_stride),
                                    as<void>(out),
                                    nullptr,
                                    as<void>(stats)};
          run([&] { return kernels.gatv2_forward(params, nullptr); });
        });

  m.def("gatv2_alpha",
        [kernels](int dtype, int threads, int64_t heads, int64_t channels, Pointer rowptr,
                  Pointer col, Pointer eid, int64_t rows, Pointer dst, int64_t dst_stride,
                  Pointer att, Pointer edge, double slope, Pointer seed, double p, Pointer x,
                  int64_t x_stride, Pointer stats, Pointer alpha) {
          const Gatv2Forward params{{DType(dtype), threads, heads, channels},
                                    edges(rowptr, col, eid, rows),
                                    {matrix(dst, dst_stride),
                                     as<const void>(att),
                                     as<const void>(edge),
                                     slope,
                                     {as<const int64_t>(seed), p}},
                                    matrix(x, x_stride),
                                    nullptr,
                                    nullptr,
                                    nullptr};
          const AlphaOut to{as<const void>(stats), as<void>(alpha)};
          run([&] { return kernels.gatv2_forward(params, &to); });
        });

  m.def("gatv2_backward",
        [kernels](int dtype, int threads, int64_t heads, int64_t channels, Pointer rowptr,
                  Pointer col, Pointer eid, int64_t num_dst, Pointer colptr, Pointer row,
                  Pointer ceid, int64_t num_src, Pointer dst, int64_t dst_stride, Pointer att,
                  Pointer edge, double slope, Pointer seed, double p, Pointer x, int64_t x_stride,
                  Pointer grad, int64_t grad_stride, Pointer out, Pointer stats, Pointer alpha,
                  Pointer grad_alpha, Pointer packed, int64_t packed_stride, Pointer grad_src,
                  Pointer grad_dst, Pointer grad_att, Pointer grad_edge) {
          const Gatv2Backward params{{DType(dtype), threads, heads, channels},
                                     edges(rowptr, col, eid, num_dst),
                                     edges(colptr, row, ceid, num_src),
                                     {matrix(dst, dst_stride),
                                      as<const void>(att),
                                      as<const void>(edge),
                                      slope,
                                      {as<const int64_t>(seed), p}},
                                     matrix(x, x_stride),
                                     matrix(grad, grad_stride),
                                     as<const void>(out),
                                     as<const void>(stats),
                                     as<const void>(alpha),
                                     as<const void>(grad_alpha),
                                     matrix(packed, packed_stride),
                                     as<void>(grad_src),
                                     as<void>(grad_dst),
                                     as<void>(grad_att),
                                     as<void>(grad_edge)};
          run([&] { return kernels.gatv2_backward(params); });
        });

  m.def("sparse_product",
        [kernels](int dtype, int threads, Pointer rowptr, Pointer col, Pointer order, int64_t rows,
                  int64_t width, Pointer values, Pointer x, int64_t x_stride, Pointer out) {
          const SparseProduct params{DType(dtype),
                                     threads,
                                     as<const int64_t>(rowptr),
                                     as<const int32_t>(col),
                                     as<const int32_t>(order),
                                     rows,
                                     width,
                                     as<const void>(values),
                                     matrix(x, x_stride),
                                     as<void>(out)};
          run([&] { return kernels.sparse_product(params); });
        });

  m.def("feature_dropout", [kernels](int dtype, int threads, int64_t count, Pointer seed, double p,
                                     Pointer x, Pointer out) {
    const FeatureDropout params{
        DType(dtype),      threads,      count, {as<const int64_t>(seed), p},
        as<const void>(x), as<void>(out)};
    run([&] { return kernels.feature_dropout(params); });
  });
}

}  // namespace gatkernels
