// The functions that every compiled module has: records from Python to the contract's parameters.
#pragma once
#include "records.h"

namespace gatkernels {

// Launcher runs the kernels in a Context, which says what they need besides the contract's
// parameters, and throws.
template <class Launcher>
void define_contract(py::module_& m, const Launcher& launcher) {
  using Context = typename Launcher::Context;

  m.def("node_scores", [launcher](int dtype, const Context& context, const GatInputs& inputs,
                                  Data score_src, Data score_dst) {
    const auto& x = inputs.x;
    const NodeScores params{x.shape(dtype, launcher.threads(context)),
                            x.nodes,
                            x.rows,
                            inputs.att_src,
                            inputs.att_dst,
                            score_src.pointer,
                            score_dst.pointer};
    launcher.node_scores(params, context);
  });

  m.def("gat_forward",
        [launcher](int dtype, const Context& context, const Edges& csr, const GatInputs& inputs,
                   const Scoring& scoring, Data out, Data out_pos, Data stats) {
          const GatForward params{inputs.x.shape(dtype, launcher.threads(context)),
                                  csr,
                                  inputs.scores(scoring),
                                  inputs.x.rows,
                                  out.pointer,
                                  out_pos.pointer,
                                  stats.pointer};
          launcher.gat_forward(params, context);
        });

  m.def("gat_alpha",
        [launcher](int dtype, const Context& context, const Edges& csr, const GatInputs& inputs,
                   const Scoring& scoring, Data stats, Data alpha) {
          const GatAlpha params{{DType(dtype), launcher.threads(context), inputs.x.heads, 0},
                                csr,
                                inputs.scores(scoring),
                                stats.pointer,
                                alpha.pointer};
          launcher.gat_alpha(params, context);
        });

  m.def("gat_destinations",
        [launcher](int dtype, const Context& context, const Edges& csr, const GatInputs& inputs,
                   const Scoring& scoring, const GatSaved& saved, const OutGrads& grads,
                   const GatDestinationGrads& results) {
          const GatDestinations params{inputs.x.shape(dtype, launcher.threads(context)),
                                       csr,
                                       inputs.scores(scoring),
                                       grads.out,
                                       saved.out,
                                       saved.out_pos,
                                       saved.stats,
                                       saved.alpha,
                                       grads.alpha,
                                       results.fields,
                                       results.dst};
          launcher.gat_destinations(params, context);
        });

  m.def("gat_sources",
        [launcher](int dtype, const Context& context, const Edges& csc, const GatInputs& inputs,
                   const Scoring& scoring, const OutGrads& grads, const GatDestinationGrads& found,
                   const GatSourceGrads& results) {
          const GatSources params{inputs.x.shape(dtype, launcher.threads(context)),
                                  csc,
                                  inputs.scores(scoring),
                                  inputs.x.rows,
                                  grads.out,
                                  grads.alpha,
                                  found.fields,
                                  results.x,
                                  results.src,
                                  found.dst,
                                  results.edge,
                                  inputs.att_src,
                                  inputs.att_dst,
                                  inputs.att_src ? results.att : nullptr};
          launcher.gat_sources(params, context);
        });

  m.def("rowwise_forward",
        [launcher](int dtype, const Context& context, RowScorer scorer, const Edges& csr,
                   const RowwiseInputs& inputs, const Scoring& scoring, Data out, Data stats) {
          const RowwiseForward params{inputs.x.shape(dtype, launcher.threads(context)),
                                      csr,
                                      scorer,
                                      inputs.scores(scoring),
                                      inputs.x.rows,
                                      out.pointer,
                                      stats.pointer};
          launcher.rowwise_forward(params, context);
        });

  m.def("rowwise_alpha",
        [launcher](int dtype, const Context& context, RowScorer scorer, const Edges& csr,
                   const RowwiseInputs& inputs, const Scoring& scoring, Data stats, Data alpha) {
          const RowwiseAlpha params{inputs.x.shape(dtype, launcher.threads(context)),
                                    csr,
                                    scorer,
                                    inputs.scores(scoring),
                                    inputs.x.rows,
                                    stats.pointer,
                                    alpha.pointer};
          launcher.rowwise_alpha(params, context);
        });

  m.def("rowwise_destinations",
        [launcher](int dtype, const Context& context, RowScorer scorer, const Edges& csr,
                   const RowwiseInputs& inputs, const Scoring& scoring, const RowwiseSaved& saved,
                   const OutGrads& grads, const RowwiseDestinationGrads& results) {
          const RowwiseDestinations params{inputs.x.shape(dtype, launcher.threads(context)),
                                           csr,
                                           scorer,
                                           inputs.scores(scoring),
                                           inputs.x.rows,
                                           grads.out,
                                           saved.out,
                                           saved.stats,
                                           saved.alpha,
                                           grads.alpha,
                                           results.fields,
                                           results.dst,
                                           results.att,
                                           results.edge};
          launcher.rowwise_destinations(params, context);
        });

  m.def("rowwise_sources",
        [launcher](int dtype, const Context& context, RowScorer scorer, const Edges& csc,
                   const RowwiseInputs& inputs, const Scoring& scoring, const OutGrads& grads,
                   Data fields, Data grad_x) {
          const RowwiseSources params{inputs.x.shape(dtype, launcher.threads(context)),
                                      csc,
                                      scorer,
                                      inputs.scores(scoring),
                                      inputs.x.rows,
                                      grads.out,
                                      grads.alpha,
                                      fields.pointer,
                                      grad_x.pointer};
          launcher.rowwise_sources(params, context);
        });

  m.def("dot_forward",
        [launcher](int dtype, const Context& context, const Edges& csr, const DotInputs& inputs,
                   const Scoring& scoring, Data out, Data edge_out, Data stats) {
          const DotForward params{inputs.q.shape(dtype, launcher.threads(context)),
                                  csr,
                                  inputs.scores(scoring),
                                  inputs.values(),
                                  out.pointer,
                                  edge_out.pointer,
                                  stats.pointer};
          launcher.dot_forward(params, context);
        });

  m.def("dot_alpha",
        [launcher](int dtype, const Context& context, const Edges& csr, const DotInputs& inputs,
                   const Scoring& scoring, Data stats, Data alpha) {
          const DotAlpha params{inputs.q.shape(dtype, launcher.threads(context)), csr,
                                inputs.scores(scoring), stats.pointer, alpha.pointer};
          launcher.dot_alpha(params, context);
        });

  m.def("dot_destinations",
        [launcher](int dtype, const Context& context, const Edges& csr, const DotInputs& inputs,
                   const Scoring& scoring, const DotSaved& saved, const DotOutGrads& grads,
                   const DotDestinationGrads& results) {
          const DotDestinations params{inputs.q.shape(dtype, launcher.threads(context)),
                                       csr,
                                       inputs.scores(scoring),
                                       inputs.values(),
                                       grads,
                                       saved.out,
                                       saved.edge_out,
                                       saved.stats,
                                       saved.alpha,
                                       results.fields,
                                       results.q,
                                       results.edge,
                                       results.edge_query};
          launcher.dot_destinations(params, context);
        });

  m.def("dot_sources",
        [launcher](int dtype, const Context& context, const Edges& csc, const DotInputs& inputs,
                   const Scoring& scoring, const DotOutGrads& grads, Data fields,
                   const DotSourceGrads& results) {
          const DotSources params{inputs.q.shape(dtype, launcher.threads(context)),
                                  csc,
                                  inputs.scores(scoring),
                                  inputs.values(),
                                  grads,
                                  fields.pointer,
                                  results.k,
                                  results.v};
          launcher.dot_sources(params, context);
        });
}

}  // namespace gatkernels
