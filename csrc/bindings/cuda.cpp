// The CUDA kernels for Python: convert and throw, nothing else.
#include <stdexcept>
#include <string>

#include "../core/half.h"
#include "../cuda/kernels.h"
#include "contract.h"

namespace gatkernels {
namespace {

// What a call needs besides the contract's parameters.
struct Context {
  int device;
  cuda::Plan plan;
};

Schedule schedule(Data order, Data chunk_row, Data chunk_end, int64_t chunks, int64_t chunk) {
  return {static_cast<const int32_t*>(order.pointer),
          static_cast<const int32_t*>(chunk_row.pointer),
          static_cast<const int64_t*>(chunk_end.pointer), chunks, chunk};
}

// What gatkernels/backends/tiles.py asks of a GPU; zeros of none.
py::tuple gpu(int device) {
  const auto get = [&](cudaDeviceAttr which) {
    int value = 0;
    if (cudaDeviceGetAttribute(&value, which, device) == cudaSuccess) return value;
    cudaGetLastError();  // or the next launch would report it
    return 0;
  };
  return py::make_tuple(get(cudaDevAttrL2CacheSize), get(cudaDevAttrMultiProcessorCount),
                        get(cudaDevAttrClockRate), get(cudaDevAttrMemoryClockRate),
                        get(cudaDevAttrGlobalMemoryBusWidth));
}

// Runs a launcher without the GIL, on the device of the tensors, which is torch's current one.
template <class Launch>
void run(const Context& context, Launch launch) {
  cudaError_t error;
  {
    py::gil_scoped_release release;
    error = cudaSetDevice(context.device);
    if (error == cudaSuccess) error = launch();
    if (error != cudaSuccess) cudaGetLastError();  // or the next launch would report it, too
  }
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("gatkernels: CUDA: ") + cudaGetErrorString(error));
  }
}

// Calls visit with a value of the type that features have.
template <class Visit>
cudaError_t of_type(DType dtype, Visit visit) {
  switch (dtype) {
    case DType::kFloat32:
      return visit(float());
    case DType::kFloat64:
      return visit(double());
    case DType::kBFloat16:
      return visit(BFloat16());
    case DType::kFloat16:
      return visit(Half());
  }
  throw std::invalid_argument("gatkernels: unknown dtype code");
}

struct Launcher {
  using Context = gatkernels::Context;

  int threads(const Context&) const { return 0; }
  void node_scores(const NodeScores& p, const Context& context) const {
    run(context, [&] {
      return of_type(p.shape.dtype,
                     [&](auto type) { return cuda::node_scores<decltype(type)>(p, context.plan); });
    });
  }
  void gat_forward(const GatForward& p, const Context& context) const {
    run(context, [&] {
      return of_type(p.shape.dtype,
                     [&](auto type) { return cuda::gat_forward<decltype(type)>(p, context.plan); });
    });
  }
  void gat_alpha(const GatAlpha& p, const Context& context) const {
    run(context, [&] {
      return p.shape.dtype == DType::kFloat64 ? cuda::gat_alpha<double>(p, context.plan)
                                              : cuda::gat_alpha<float>(p, context.plan);
    });
  }
  void gat_destinations(const GatDestinations& p, const Context& context) const {
    run(context, [&] {
      return of_type(p.shape.dtype, [&](auto type) {
        return cuda::gat_destinations<decltype(type)>(p, context.plan);
      });
    });
  }
  void gat_sources(const GatSources& p, const Context& context) const {
    run(context, [&] {
      return of_type(p.shape.dtype,
                     [&](auto type) { return cuda::gat_sources<decltype(type)>(p, context.plan); });
    });
  }
  void rowwise_forward(const RowwiseForward& p, const Context& context) const {
    run(context, [&] {
      return of_type(p.shape.dtype, [&](auto type) {
        return cuda::rowwise_forward<decltype(type)>(p, context.plan);
      });
    });
  }
  void rowwise_alpha(const RowwiseAlpha& p, const Context& context) const {
    run(context, [&] {
      return of_type(p.shape.dtype, [&](auto type) {
        return cuda::rowwise_alpha<decltype(type)>(p, context.plan);
      });
    });
  }
  void rowwise_destinations(const RowwiseDestinations& p, const Context& context) const {
    run(context, [&] {
      return of_type(p.shape.dtype, [&](auto type) {
        return cuda::rowwise_destinations<decltype(type)>(p, context.plan);
      });
    });
  }
  void rowwise_sources(const RowwiseSources& p, const Context& context) const {
    run(context, [&] {
      return of_type(p.shape.dtype, [&](auto type) {
        return cuda::rowwise_sources<decltype(type)>(p, context.plan);
      });
    });
  }
  void dot_forward(const DotForward& p, const Context& context) const {
    run(context, [&] {
      return of_type(p.shape.dtype,
                     [&](auto type) { return cuda::dot_forward<decltype(type)>(p, context.plan); });
    });
  }
  void dot_alpha(const DotAlpha& p, const Context& context) const {
    run(context, [&] {
      return of_type(p.shape.dtype,
                     [&](auto type) { return cuda::dot_alpha<decltype(type)>(p, context.plan); });
    });
  }
  void dot_destinations(const DotDestinations& p, const Context& context) const {
    run(context, [&] {
      return of_type(p.shape.dtype, [&](auto type) {
        return cuda::dot_destinations<decltype(type)>(p, context.plan);
      });
    });
  }
  void dot_sources(const DotSources& p, const Context& context) const {
    run(context, [&] {
      return of_type(p.shape.dtype,
                     [&](auto type) { return cuda::dot_sources<decltype(type)>(p, context.plan); });
    });
  }
};

}  // namespace

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
#ifndef GK_SIMT
  m.attr("device") = "cuda";
#else
  m.attr("device") = "cpu";  // the emulator of the tests
  m.def("reverse_threads", [](bool reversed) { simt::reversed = reversed; });
  m.def("launches", [] { return simt::launches; });
#endif
  m.attr("att_parts") = cuda::kAttParts;
  m.def("gpu", &gpu);
  m.attr("slice") = cuda::kSlice;
  py::class_<Schedule>(m, "Schedule", py::module_local()).def(py::init(&schedule));
  py::class_<Context>(m, "Context", py::module_local())
      .def(py::init([](int device, uintptr_t stream, const Schedule& schedule, Data partials,
                       Data edge_terms, Data att_parts, int64_t most_heads) {
        return Context{device,
                       {schedule, partials.pointer, edge_terms.pointer, att_parts.pointer,
                        reinterpret_cast<cudaStream_t>(stream), most_heads}};
      }));
  define_contract(m, Launcher());
}

}  // namespace gatkernels
