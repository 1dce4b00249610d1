// Arguments from Python: tensors, and the records of gatkernels/ops/call.py, field by field in
// their order. Tensors are asked for what is needed, so that no torch is linked; the caller has
// made them fit and keeps them alive.
#pragma once
#include <pybind11/gil_safe_call_once.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "../core/params.h"
#include "dlpack.h"

namespace gatkernels {

namespace py = pybind11;

// How tensors are asked, looked up once: a call takes half as long.
struct TensorMethods {
  dlpack::ViewOf view_of;  // null: by the methods
  PyObject *data_ptr, *stride, *size;

  // The lookup may let another thread have the GIL, which must not then wait for a static's guard.
  static const TensorMethods& get() {
    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<TensorMethods> stored;
    return stored
        .call_once_and_store_result([] {
          const py::object tensor = py::module_::import("torch").attr("Tensor");
          const auto method = [&](const char* name) {
            return py::object(tensor.attr(name)).release().ptr();
          };
          return TensorMethods{dlpack::view_of(tensor), method("data_ptr"), method("stride"),
                               method("size")};
        })
        .get_stored();
  }
};

// A tensor, or None.
class TensorArgument {
 public:
  explicit TensorArgument(py::handle tensor) : tensor_(tensor.is_none() ? nullptr : tensor.ptr()) {
    if (tensor_ == nullptr) return;
    const dlpack::ViewOf view_of = TensorMethods::get().view_of;
    if (view_of == nullptr) return;
    if (view_of(tensor_, &view_) != 0) throw py::error_already_set();
    viewed_ = true;
  }

  void* data() const {
    if (tensor_ == nullptr || viewed_) return view_.data;
    return reinterpret_cast<void*>(ask(TensorMethods::get().data_ptr));
  }
  // Of the first dimension
  int64_t stride() const {
    return viewed_ ? view_.strides[0] : ask(TensorMethods::get().stride, py::int_(0));
  }
  int64_t size(int dimension) const {
    return viewed_ ? view_.shape[dimension] : ask(TensorMethods::get().size, py::int_(dimension));
  }
  Matrix matrix() const {
    return tensor_ == nullptr ? Matrix{nullptr, 0, 0} : Matrix{data(), stride(), size(0)};
  }

 private:
  PyObject* tensor_;
  bool viewed_ = false;
  dlpack::Tensor view_{};

  // What a method says of this tensor, and perhaps of a dimension.
  int64_t ask(PyObject* method, py::handle dimension = py::handle()) const {
    PyObject* const arguments[] = {tensor_, dimension.ptr()};
    PyObject* result = PyObject_Vectorcall(method, arguments, dimension ? 2 : 1, nullptr);
    if (result == nullptr) throw py::error_already_set();
    const int64_t value = PyLong_AsLongLong(result);
    Py_DECREF(result);
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    return value;
  }
};

// A named tuple of so many fields.
class RecordArgument {
 public:
  RecordArgument(py::handle record, const char* name, Py_ssize_t fields) : record_(record.ptr()) {
    if (PyTuple_Check(record_) && PyTuple_GET_SIZE(record_) == fields) return;
    throw std::invalid_argument(std::string("gatkernels: ") + name + " must be a tuple of " +
                                std::to_string(fields) + " fields, got " +
                                py::cast<std::string>(py::repr(py::type::handle_of(record))));
  }
  py::handle operator[](Py_ssize_t field) const { return PyTuple_GET_ITEM(record_, field); }
  TensorArgument tensor(Py_ssize_t field) const { return TensorArgument((*this)[field]); }
  void* data(Py_ssize_t field) const { return tensor(field).data(); }

 private:
  PyObject* record_;
};

// A tensor's memory; null for None.
struct Data {
  void* pointer;

  static Data from(py::handle tensor) { return {TensorArgument(tensor).data()}; }
};

// As gatkernels/backends/fit.py hands it on: a number, and Dropout with or without a seed.
struct Scoring {
  double number;  // negative_slope, or the scale of dot products
  Dropout dropout;

  static Scoring from(py::handle given) {
    const RecordArgument record(given, "a scoring", 5);
    return {py::cast<double>(record[0]),
            {static_cast<const int64_t*>(record.data(1)), py::cast<uint32_t>(record[2]),
             py::cast<double>(record[3]), py::cast<int64_t>(record[4])}};
  }
};

// Features [nodes, heads, channels].
struct Features {
  Matrix rows;
  int64_t nodes, heads, channels;

  static Features from(const TensorArgument& x) {
    return {x.matrix(), x.size(0), x.size(1), x.size(2)};
  }
  Shape shape(int dtype, int threads) const { return {DType(dtype), threads, heads, channels}; }
};

struct GatInputs {
  Features x;
  Matrix src, dst;
  const void *edge, *att_src, *att_dst;

  static GatInputs from(py::handle given) {
    const RecordArgument record(given, "GatInputs", 6);
    return {Features::from(record.tensor(0)),
            record.tensor(1).matrix(),
            record.tensor(2).matrix(),
            record.data(3),
            record.data(4),
            record.data(5)};
  }
  GatScores scores(const Scoring& scoring) const {
    return {src, dst, edge, scoring.number, scoring.dropout};
  }
};

struct RowwiseInputs {
  Features x;
  Matrix dst;
  const void *att, *edge;

  static RowwiseInputs from(py::handle given) {
    const RecordArgument record(given, "RowwiseInputs", 4);
    return {Features::from(record.tensor(0)), record.tensor(1).matrix(), record.data(2),
            record.data(3)};
  }
  RowwiseScores scores(const Scoring& scoring) const {
    return {dst, att, edge, scoring.number, scoring.dropout};
  }
};

struct DotInputs {
  Features q, v;
  Matrix k, edge_query;
  const void* edge;
  int64_t features;

  static DotInputs from(py::handle given) {
    const RecordArgument record(given, "DotInputs", 5);
    const bool with_edge = !record[3].is_none();
    return {Features::from(record.tensor(0)),
            Features::from(record.tensor(2)),
            record.tensor(1).matrix(),
            record.tensor(4).matrix(),
            record.data(3),
            with_edge ? record.tensor(3).size(1) : 0};
  }
  DotScores scores(const Scoring& scoring) const {
    return {q.rows, k, edge, edge_query, features, scoring.number, scoring.dropout};
  }
  DotValues values() const { return {v.rows, v.channels}; }
};

struct GatSaved {
  const void *out, *out_pos, *stats, *alpha;

  static GatSaved from(py::handle given) {
    const RecordArgument record(given, "GatSaved", 4);
    return {record.data(0), record.data(1), record.data(2), record.data(3)};
  }
};

struct RowwiseSaved {
  const void *out, *stats, *alpha;

  static RowwiseSaved from(py::handle given) {
    const RecordArgument record(given, "RowwiseSaved", 3);
    return {record.data(0), record.data(1), record.data(2)};
  }
};

struct DotSaved {
  const void *out, *edge_out, *stats, *alpha;

  static DotSaved from(py::handle given) {
    const RecordArgument record(given, "DotSaved", 4);
    return {record.data(0), record.data(1), record.data(2), record.data(3)};
  }
};

inline DotOutGrads dot_grads_from(py::handle given) {
  const RecordArgument record(given, "DotGrads", 3);
  return {record.tensor(0).matrix(), record.tensor(1).matrix(), record.data(2)};
}

struct DotDestinationGrads {
  void *q, *edge, *edge_query, *fields;

  static DotDestinationGrads from(py::handle given) {
    const RecordArgument record(given, "DotDestinationGrads", 4);
    return {record.data(0), record.data(1), record.data(2), record.data(3)};
  }
};

struct DotSourceGrads {
  void *k, *v;

  static DotSourceGrads from(py::handle given) {
    const RecordArgument record(given, "DotSourceGrads", 2);
    return {record.data(0), record.data(1)};
  }
};

struct OutGrads {
  Matrix out;
  const void* alpha;

  static OutGrads from(py::handle given) {
    const RecordArgument record(given, "OutGrads", 2);
    return {record.tensor(0).matrix(), record.data(1)};
  }
};

struct GatDestinationGrads {
  Matrix dst;
  void* fields;

  static GatDestinationGrads from(py::handle given) {
    const RecordArgument record(given, "GatDestinationGrads", 2);
    return {record.tensor(0).matrix(), record.data(1)};
  }
};

struct GatSourceGrads {
  Matrix x, src;
  void *edge, *att;

  static GatSourceGrads from(py::handle given) {
    const RecordArgument record(given, "GatSourceGrads", 4);
    return {record.tensor(0).matrix(), record.tensor(1).matrix(), record.data(2), record.data(3)};
  }
};

struct RowwiseDestinationGrads {
  void *dst, *att, *edge, *fields;

  static RowwiseDestinationGrads from(py::handle given) {
    const RecordArgument record(given, "RowwiseDestinationGrads", 4);
    return {record.data(0), record.data(1), record.data(2), record.data(3)};
  }
};

// The scorer of a name, from the list in core/scores.h.
inline RowScorer scorer_from(py::handle name) {
  const auto wanted = py::cast<std::string>(name);
  for (const auto& [known, scorer] : kRowScorers) {
    if (wanted == known) return scorer;
  }
  std::string names;
  for (const auto& [known, scorer] : kRowScorers)
    names += names.empty() ? known : std::string(", ") + known;
  throw std::invalid_argument("gatkernels: the scorer must be one of " + names + ", got '" +
                              wanted + "'");
}

inline Edges edges_from(py::handle given) {
  const RecordArgument record(given, "Edges", 7);
  const TensorArgument rowptr = record.tensor(0);
  return {static_cast<const int64_t*>(rowptr.data()), static_cast<const int32_t*>(record.data(1)),
          static_cast<const int32_t*>(record.data(2)), static_cast<const int32_t*>(record.data(4)),
          rowptr.size(0) - 1};
}

}  // namespace gatkernels

// How pybind11 makes an argument of one of these types.
#define GK_ARGUMENT(TYPE, FROM)                    \
  template <>                                      \
  struct pybind11::detail::type_caster<TYPE> {     \
    PYBIND11_TYPE_CASTER(TYPE, const_name(#TYPE)); \
    bool load(handle given, bool) {                \
      value = FROM(given);                         \
      return true;                                 \
    }                                              \
  }
GK_ARGUMENT(gatkernels::Data, gatkernels::Data::from);
GK_ARGUMENT(gatkernels::Scoring, gatkernels::Scoring::from);
GK_ARGUMENT(gatkernels::Edges, gatkernels::edges_from);
GK_ARGUMENT(gatkernels::RowScorer, gatkernels::scorer_from);
GK_ARGUMENT(gatkernels::GatInputs, gatkernels::GatInputs::from);
GK_ARGUMENT(gatkernels::RowwiseInputs, gatkernels::RowwiseInputs::from);
GK_ARGUMENT(gatkernels::DotInputs, gatkernels::DotInputs::from);
GK_ARGUMENT(gatkernels::DotSaved, gatkernels::DotSaved::from);
GK_ARGUMENT(gatkernels::DotOutGrads, gatkernels::dot_grads_from);
GK_ARGUMENT(gatkernels::DotDestinationGrads, gatkernels::DotDestinationGrads::from);
GK_ARGUMENT(gatkernels::DotSourceGrads, gatkernels::DotSourceGrads::from);
GK_ARGUMENT(gatkernels::GatSaved, gatkernels::GatSaved::from);
GK_ARGUMENT(gatkernels::RowwiseSaved, gatkernels::RowwiseSaved::from);
GK_ARGUMENT(gatkernels::OutGrads, gatkernels::OutGrads::from);
GK_ARGUMENT(gatkernels::GatDestinationGrads, gatkernels::GatDestinationGrads::from);
GK_ARGUMENT(gatkernels::GatSourceGrads, gatkernels::GatSourceGrads::from);
GK_ARGUMENT(gatkernels::RowwiseDestinationGrads, gatkernels::RowwiseDestinationGrads::from);
GK_ARGUMENT(gatkernels::Matrix,
            [](pybind11::handle given) { return gatkernels::TensorArgument(given).matrix(); });
