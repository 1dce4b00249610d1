"""What every backend with kernels offers: functions of the records of :mod:`gatkernels.ops.call`.

They allocate what they return, and take inputs and gradients of any strides. A backward comes in
two, so that sources can be given rows and fields of destinations that were computed elsewhere.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gatkernels.ops.call import (
    DotCall,
    DotDestinationGrads,
    DotGrads,
    DotSaved,
    DotSourceGrads,
    Edges,
    GatCall,
    GatDestinationGrads,
    GatSaved,
    GatSourceGrads,
    OutGrads,
    RowwiseCall,
    RowwiseDestinationGrads,
    RowwiseSaved,
)


class Kernels(Protocol):
    """A backend: an object, or a module."""

    def node_scores(self, call: GatCall) -> tuple[Tensor, Tensor | None]:
        """``[N, H]``: ``<x, att>`` of each node and head for att_src, and att_dst if there is one.

        In the dtype of the attention vectors.
        """

    def gat_forward(
        self, call: GatCall, training: bool, statistics: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """``out``; ``out_pos`` where ``training``, ``stats`` where ``statistics``, else None."""

    def gat_alpha(self, call: GatCall, stats: Tensor) -> Tensor:
        """``[E, H]`` after dropout, from a forward's statistics."""

    def gat_destinations(
        self, call: GatCall, saved: GatSaved, grads: OutGrads
    ) -> GatDestinationGrads:
        """Of each destination, from its own row."""

    def gat_sources(
        self,
        call: GatCall,
        csc: Edges,
        found: GatDestinationGrads,
        grads: OutGrads,
        of_edges: bool,
    ) -> GatSourceGrads:
        """Of each source, from the rows and fields of its edges' destinations; of edge scores, too,
        where ``of_edges``."""

    def rowwise_forward(self, call: RowwiseCall, statistics: bool) -> tuple[Tensor, Tensor | None]:
        """``out``; ``stats`` where ``statistics``, else None."""

    def rowwise_alpha(self, call: RowwiseCall, stats: Tensor) -> Tensor:
        """``[E, H]`` after dropout, from a forward's statistics."""

    def rowwise_destinations(
        self, call: RowwiseCall, saved: RowwiseSaved, grads: OutGrads, of_edges: bool
    ) -> RowwiseDestinationGrads:
        """Of each destination, from its own row and those of its edges' sources; and of the edges
        into it where ``of_edges``."""

    def rowwise_sources(
        self, call: RowwiseCall, csc: Edges, fields: Tensor, grads: OutGrads
    ) -> Tensor:
        """The gradient of x_src, from the rows and fields of its edges' destinations."""

    def dot_forward(
        self, call: DotCall, statistics: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """``out``; ``edge_out`` where there are edge features, ``stats`` where ``statistics``."""

    def dot_alpha(self, call: DotCall, stats: Tensor) -> Tensor:
        """``[E, H]`` after dropout, from a forward's statistics."""

    def dot_destinations(
        self, call: DotCall, saved: DotSaved, grads: DotGrads, of_edges: bool
    ) -> DotDestinationGrads:
        """Of each destination, and of the edges into it where ``of_edges``."""

    def dot_sources(
        self, call: DotCall, csc: Edges, fields: Tensor, grads: DotGrads
    ) -> DotSourceGrads:
        """Of each source, from the rows and fields of its edges' destinations."""
