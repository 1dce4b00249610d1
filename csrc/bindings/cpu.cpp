// The CPU kernels for Python: convert and throw, nothing else.
#include <array>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../cpu/build_csr.h"
#include "../cpu/kernels.h"
#include "../cpu/parallel.h"
#include "contract.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace gatkernels {

// Where one side of a graph goes; nulls for None.
struct Side {
  int64_t* rowptr;
  int32_t* col;
  int32_t* eid;

  static Side from(py::handle given) {
    if (given.is_none()) return {nullptr, nullptr, nullptr};
    const RecordArgument record(given, "a side of a graph", 3);
    return {static_cast<int64_t*>(record.data(0)), static_cast<int32_t*>(record.data(1)),
            static_cast<int32_t*>(record.data(2))};
  }
};

}  // namespace gatkernels

GK_ARGUMENT(gatkernels::Side, gatkernels::Side::from);

namespace gatkernels {
namespace {

void check(Status status) {
  if (status == Status::kOutOfMemory) throw std::bad_alloc();
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

constexpr const char* kUnknownDtype = "gatkernels: unknown dtype code";

// Runs a kernel that not every dtype has.
template <class Params>
void run_features(Status (*kernel)(const Params&), const Params& params) {
  if (kernel == nullptr) throw std::invalid_argument(kUnknownDtype);
  run([&] { return kernel(params); });
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

using KernelsByDtype = std::array<Kernels, 4>;

// The kernels of an instruction set, and those for rows that fill half a vector of it.
struct Isa {
  std::string name;
  KernelsByDtype kernels;
  KernelsByDtype narrow;
  int64_t narrow_bytes;

  const Kernels& of(DType dtype) const { return of(kernels, dtype); }
  const Kernels& of(const Shape& shape) const {
    const int64_t width = shape.heads * (shape.channels > 0 ? shape.channels : 1);
    const bool fits = width * (shape.dtype == DType::kFloat64 ? 8 : 4) <= narrow_bytes;
    return of(fits ? narrow : kernels, shape.dtype);
  }
  static const Kernels& of(const KernelsByDtype& all, DType dtype) {
    if (unsigned(dtype) >= all.size()) throw std::invalid_argument(kUnknownDtype);
    return all[unsigned(dtype)];
  }
};

Isa table(const std::string& isa) {
#define GK_KERNELS(NAME)                                                        \
  {                                                                             \
    NAME::kernels<float>(), NAME::kernels<double>(), NAME::kernels<BFloat16>(), \
        NAME::kernels<Half>(),                                                  \
  }
#if defined(__x86_64__)
  // AVX2's take 0.7 of the time there (GATv2 1x7).
  if (isa == "avx512") return {isa, GK_KERNELS(avx512), GK_KERNELS(avx2), 32};
  if (isa == "avx2") return {isa, GK_KERNELS(avx2), GK_KERNELS(avx2), 0};
#endif
  return {isa, GK_KERNELS(baseline), GK_KERNELS(baseline), 0};
#undef GK_KERNELS
}

Isa choose() {
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

struct Launcher {
  using Context = int;  // threads
  Isa isa;

  int threads(int context) const { return context; }
  void node_scores(const NodeScores& p, int) const {
    run([&] { return isa.of(p.shape).node_scores(p); });
  }
  void gat_forward(const GatForward& p, int) const {
    run([&] { return isa.of(p.shape).gat_forward(p); });
  }
  void gat_alpha(const GatAlpha& p, int) const {
    run([&] { return isa.of(p.shape).gat_alpha(p); });
  }
  void gat_destinations(const GatDestinations& p, int) const {
    run([&] { return isa.of(p.shape).gat_destinations(p); });
  }
  void gat_sources(const GatSources& p, int) const {
    run([&] { return isa.of(p.shape).gat_sources(p); });
  }
  void rowwise_forward(const RowwiseForward& p, int) const {
    run([&] { return isa.of(p.shape).rowwise_forward(p); });
  }
  void rowwise_alpha(const RowwiseAlpha& p, int) const {
    run([&] { return isa.of(p.shape).rowwise_alpha(p); });
  }
  void rowwise_destinations(const RowwiseDestinations& p, int) const {
    run([&] { return isa.of(p.shape).rowwise_destinations(p); });
  }
  void rowwise_sources(const RowwiseSources& p, int) const {
    run([&] { return isa.of(p.shape).rowwise_sources(p); });
  }
  void dot_forward(const DotForward& p, int) const {
    run([&] { return isa.of(p.shape).dot_forward(p); });
  }
  void dot_alpha(const DotAlpha& p, int) const {
    run([&] { return isa.of(p.shape).dot_alpha(p); });
  }
  void dot_destinations(const DotDestinations& p, int) const {
    run([&] { return isa.of(p.shape).dot_destinations(p); });
  }
  void dot_sources(const DotSources& p, int) const {
    run([&] { return isa.of(p.shape).dot_sources(p); });
  }
};

}  // namespace

PYBIND11_MODULE(_cpu, m, py::mod_gil_not_used()) {
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      std::rethrow_exception(thrown);
    } catch (const std::bad_alloc&) {
      PyErr_SetString(PyExc_MemoryError, "gatkernels: out of memory");
    }
  });
  const Isa isa = choose();
  m.attr("isa") = isa.name;
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif

  m.def("want_large_pages",
        [](Data memory, size_t bytes) { want_large_pages(memory.pointer, bytes); });

  // Both sides of a graph, or without `csc` the first alone; the place of an id out of range.
  m.def("build_graph", [](Data row, Data other, bool wide, int64_t edges, int64_t num_rows,
                          int64_t num_others, bool self_loops, int threads, const Side& csr,
                          const Side& csc) {
    int64_t bad = -1;
    run([&] {
      const BuildCsr build{row.pointer, other.pointer, wide,       edges,   num_rows, num_others,
                           self_loops,  threads,       csr.rowptr, csr.col, csr.eid};
      const Status status = build_csr(build, &bad);
      if (status != Status::kOk || bad >= 0 || csc.rowptr == nullptr) return status;
      return build_csr(build.transposed(csc.rowptr, csc.col, csc.eid), &bad);
    });
    return bad;
  });

  define_contract(m, Launcher{isa});

  m.def("sparse_product",
        [isa](int dtype, int threads, Data rowptr, Data col, Data order, int64_t rows,
              int64_t width, Data values, const Matrix& x, Data out) {
          const SparseProduct params{DType(dtype),
                                     threads,
                                     static_cast<const int64_t*>(rowptr.pointer),
                                     static_cast<const int32_t*>(col.pointer),
                                     static_cast<const int32_t*>(order.pointer),
                                     rows,
                                     width,
                                     values.pointer,
                                     x,
                                     out.pointer};
          run_features(isa.of(params.dtype).sparse_product, params);
        });

  m.def("sparse_transposed_product",
        [isa](int dtype, int threads, Data rowptr, Data col, int64_t rows, int64_t columns,
              int64_t width, Data values, const Matrix& x, Data out) {
          const SparseTransposedProduct params{DType(dtype),
                                               threads,
                                               static_cast<const int64_t*>(rowptr.pointer),
                                               static_cast<const int32_t*>(col.pointer),
                                               rows,
                                               columns,
                                               width,
                                               values.pointer,
                                               x,
                                               out.pointer};
          run_features(isa.of(params.dtype).sparse_transposed_product, params);
        });

  m.def("feature_dropout", [isa](int dtype, int threads, int64_t count, Data seed,
                                 uint32_t threshold, double scale, int activation, Data x,
                                 Data grad, Data out) {
    const FeatureDropout params{DType(dtype),
                                threads,
                                count,
                                {static_cast<const int64_t*>(seed.pointer), threshold, scale, 0},
                                Activation(activation),
                                x.pointer,
                                grad.pointer,
                                out.pointer};
    run_features(isa.of(params.dtype).feature_dropout, params);
  });
}

}  // namespace gatkernels
