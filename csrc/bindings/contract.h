// The functions that every compiled module has: arguments from Python to the contract's parameters.
// Pointers come as integers; the one caller is gatkernels/backends/native.py, which owns shapes,
// strides and lifetimes.
#pragma once
#include <pybind11/pybind11.h>

#include "../core/params.h"

namespace gatkernels {

namespace py = pybind11;
using Pointer = uintptr_t;

template <class T>
T* as(Pointer p) {
  return reinterpret_cast<T*>(p);
}
inline Matrix matrix(Pointer p, int64_t stride) { return {as<void>(p), stride}; }
inline Edges edges(Pointer rowptr, Pointer col, Pointer eid, int64_t rows) {
  return {as<const int64_t>(rowptr), as<const int32_t>(col), as<const int32_t>(eid), rows};
}

// Launcher runs the kernels in a Context, which says what they need besides the contract's
// parameters, and throws.
template <class Launcher>
void define_contract(py::module_& m, const Launcher& launcher) {
  using Context = typename Launcher::Context;

  m.def("node_scores",
        [launcher](int dtype, const Context& context, int64_t heads, int64_t channels, int64_t rows,
                   Pointer x, int64_t x_stride, Pointer att_src, Pointer att_dst, Pointer score_src,
                   Pointer score_dst) {
          const NodeScores params{{DType(dtype), launcher.threads(context), heads, channels},
                                  rows,
                                  matrix(x, x_stride),
                                  as<const void>(att_src),
                                  as<const void>(att_dst),
                                  as<void>(score_src),
                                  as<void>(score_dst)};
          launcher.node_scores(params, context);
        });

  m.def("gat_forward",
        [launcher](int dtype, const Context& context, int64_t heads, int64_t channels,
                   Pointer rowptr, Pointer col, Pointer eid, int64_t rows, Pointer src,
                   int64_t src_stride, Pointer dst, int64_t dst_stride, Pointer edge, double slope,
                   Pointer seed, double p, Pointer x, int64_t x_stride, Pointer out,
                   Pointer out_pos, Pointer stats) {
          const GatForward params{{DType(dtype), launcher.threads(context), heads, channels},
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
          launcher.gat_forward(params, context);
        });

  m.def("gat_alpha",
        [launcher](int dtype, const Context& context, int64_t heads, Pointer rowptr, Pointer col,
                   Pointer eid, int64_t rows, Pointer src, int64_t src_stride, Pointer dst,
                   int64_t dst_stride, Pointer edge, double slope, Pointer seed, double p,
                   Pointer stats, Pointer alpha) {
          const GatAlpha params{{DType(dtype), launcher.threads(context), heads, 0},
                                edges(rowptr, col, eid, rows),
                                {matrix(src, src_stride),
                                 matrix(dst, dst_stride),
                                 as<const void>(edge),
                                 slope,
                                 {as<const int64_t>(seed), p}},
                                as<const void>(stats),
                                as<void>(alpha)};
          launcher.gat_alpha(params, context);
        });

  m.def("gat_backward",
        [launcher](int dtype, const Context& context, int64_t heads, int64_t channels,
                   Pointer rowptr, Pointer col, Pointer eid, int64_t num_dst, Pointer colptr,
                   Pointer row, Pointer ceid, int64_t num_src, Pointer src, int64_t src_stride,
                   Pointer dst, int64_t dst_stride, Pointer edge, double slope, Pointer seed,
                   double p, Pointer x, int64_t x_stride, Pointer grad, int64_t grad_stride,
                   Pointer out, Pointer out_pos, Pointer stats, Pointer alpha, Pointer grad_alpha,
                   Pointer fields, Pointer grad_x, int64_t grad_x_stride, Pointer grad_src,
                   int64_t grad_src_stride, Pointer grad_dst, int64_t grad_dst_stride,
                   Pointer grad_edge, Pointer att_src, Pointer att_dst, Pointer grad_att) {
          const GatBackward params{{DType(dtype), launcher.threads(context), heads, channels},
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
                                   as<void>(fields),
                                   matrix(grad_x, grad_x_stride),
                                   matrix(grad_src, grad_src_stride),
                                   matrix(grad_dst, grad_dst_stride),
                                   as<void>(grad_edge),
                                   as<const void>(att_src),
                                   as<const void>(att_dst),
                                   as<void>(grad_att)};
          launcher.gat_backward(params, context);
        });

  m.def("gatv2_forward",
        [launcher](int dtype, const Context& context, int64_t heads, int64_t channels,
                   Pointer rowptr, Pointer col, Pointer eid, int64_t rows, Pointer dst,
                   int64_t dst_stride, Pointer att, Pointer edge, double slope, Pointer seed,
                   double p, Pointer x, int64_t x_stride, Pointer out, Pointer stats) {
          const RowwiseForward params{{DType(dtype), launcher.threads(context), heads, channels},
                                      edges(rowptr, col, eid, rows),
                                      RowScorer::kGatv2,
                                      {matrix(dst, dst_stride),
                                       as<const void>(att),
                                       as<const void>(edge),
                                       slope,
                                       {as<const int64_t>(seed), p}},
                                      matrix(x, x_stride),
                                      as<void>(out),
                                      as<void>(stats)};
          launcher.rowwise_forward(params, context);
        });

  m.def("gatv2_alpha",
        [launcher](int dtype, const Context& context, int64_t heads, int64_t channels,
                   Pointer rowptr, Pointer col, Pointer eid, int64_t rows, Pointer dst,
                   int64_t dst_stride, Pointer att, Pointer edge, double slope, Pointer seed,
                   double p, Pointer x, int64_t x_stride, Pointer stats, Pointer alpha) {
          const RowwiseAlpha params{{DType(dtype), launcher.threads(context), heads, channels},
                                    edges(rowptr, col, eid, rows),
                                    RowScorer::kGatv2,
                                    {matrix(dst, dst_stride),
                                     as<const void>(att),
                                     as<const void>(edge),
                                     slope,
                                     {as<const int64_t>(seed), p}},
                                    matrix(x, x_stride),
                                    as<const void>(stats),
                                    as<void>(alpha)};
          launcher.rowwise_alpha(params, context);
        });

  m.def("gatv2_backward",
        [launcher](int dtype, const Context& context, int64_t heads, int64_t channels,
                   Pointer rowptr, Pointer col, Pointer eid, int64_t num_dst, Pointer colptr,
                   Pointer row, Pointer ceid, int64_t num_src, Pointer dst, int64_t dst_stride,
                   Pointer att, Pointer edge, double slope, Pointer seed, double p, Pointer x,
                   int64_t x_stride, Pointer grad, int64_t grad_stride, Pointer out, Pointer stats,
                   Pointer alpha, Pointer grad_alpha, Pointer fields, Pointer grad_src,
                   Pointer grad_dst, Pointer grad_att, Pointer grad_edge) {
          const RowwiseBackward params{{DType(dtype), launcher.threads(context), heads, channels},
                                       edges(rowptr, col, eid, num_dst),
                                       edges(colptr, row, ceid, num_src),
                                       RowScorer::kGatv2,
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
                                       as<void>(fields),
                                       as<void>(grad_src),
                                       as<void>(grad_dst),
                                       as<void>(grad_att),
                                       as<void>(grad_edge)};
          launcher.rowwise_backward(params, context);
        });
}

}  // namespace gatkernels
