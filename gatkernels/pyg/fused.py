"""What the fused layers share: when PyG's own code runs, and the graph of an adjacency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter
from torch_geometric.nn import Linear, MessagePassing
from torch_geometric.nn.aggr import SumAggregation
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import is_sparse

from gatkernels import backends
from gatkernels.graph import Graph
from gatkernels.layers import shared
from gatkernels.layers.dropin import DropIn, own, plain_tensors
from gatkernels.layers.shared import autocast, is_plain
from gatkernels.ops.checks import DTYPE_CODES
from gatkernels.pyg import _as_pyg
from gatkernels.pyg.adjacency import Adjacency, Unfused, adjacency, node_counts

shared.LINEAR_TYPES[Linear] = own(Linear, "forward")


class Fused(DropIn):
    """What the layers share: when PyG's own code runs, and what comes before and after.

    ``propagate_type`` and ``edge_updater_type`` tell PyG's templates what its own source says in
    comments, which it does not find in a subclass of the same name.
    """

    edge_updater_type: ClassVar[dict[str, str]]
    propagate_type: ClassVar[dict[str, str]]

    @classmethod
    def computes_alike(cls, kind: type) -> bool:
        return _as_pyg.computes_alike(kind)

    @classmethod
    def why_not_now(cls, module: Any) -> str | None:
        return _as_pyg.why_not(module, cls.original)

    def _set_jittable_templates(self: Any, raise_on_error: bool = False) -> None:
        super()._set_jittable_templates(raise_on_error)  # type: ignore[misc]
        # PyG takes the parent's template for the original here, and explain mode would skip masks.
        type(self)._orig_propagate = MessagePassing.propagate
        type(self)._orig_edge_updater = MessagePassing.edge_updater
        _as_pyg.know(type(self))

    @classmethod
    def why_not(cls, module: Any) -> str | None:
        if type(module._modules.get("aggr_module")) is not SumAggregation:
            return f"aggr={module.aggr!r}"
        options = module.__dict__
        if options["_decomposed_layers"] != 1:
            return f"decomposed_layers={module.decomposed_layers}"
        if options.get("normalize"):  # PyG's development version
            return "normalize=True"
        return None

    def fell_back(self: Any, reason: str, adjacency: Any = None) -> None:
        """As all drop-ins do, but on an adjacency that PyG's code does not know.

        Raises: TypeError, with the reason.
        """
        if isinstance(adjacency, Graph):
            raise TypeError(
                f"{type(self).__name__}: PyG's own code must run, which takes no "
                f"{type(adjacency).__name__}: {reason}"
            )
        super().fell_back(reason)

    def _check(
        self: Any, features: Sequence[Any], edges: Sequence[Any], *others: Tensor | None
    ) -> None:
        """Raise Unfused where PyG's own code must run."""
        if reason := self.why_not(self) or self.why_not_now(self):
            raise Unfused(reason)
        for x in features:
            if not isinstance(x, Tensor) or x.dim() != 2 or x.layout != torch.strided:
                raise Unfused("features that are not a dense matrix")
        if not plain_tensors(*features, *others):
            raise Unfused("tensors of a subclass")
        first = features[0]
        case = backends.Case(first.device, first.dtype)
        no_kernel = self.backend == "auto" and backends.select("", "auto", case) == "reference"
        if no_kernel or first.dtype not in DTYPE_CODES:
            raise Unfused(f"no kernel for {first.dtype} on {first.device.type}")
        check_dtypes(first, *features, *others)
        for edge_index in edges:
            if isinstance(edge_index, Tensor) and edge_index.device != first.device:
                raise Unfused("tensors on different devices")

    def _adjacency(
        self: Any, x_src: Tensor, x_dst: Tensor | None, edge_index: Any, edge_attr: Any, size: Any
    ) -> Adjacency:
        if is_sparse(edge_index):  # it knows its own size
            size = (x_src.shape[0], edge_index.size(0)) if x_dst is None else None
        if (
            isinstance(edge_index, SparseTensor)
            and self.add_self_loops
            and self.edge_dim is not None
        ):
            raise Unfused("edge_dim and self loops with a SparseTensor")
        counts = node_counts(x_src, x_dst, size)
        edges = adjacency(edge_index, edge_attr, counts, self.add_self_loops, self.fill_value)
        if self.flow == "target_to_source":
            if is_sparse(edge_index) or counts[0] != counts[1]:
                raise Unfused("flow='target_to_source' on a sparse or bipartite adjacency")
            edges = edges._replace(graph=edges.graph.reverse())
        return edges


def check_dtypes(x: Tensor, *others: Tensor | None) -> None:
    """Mixed dtypes are PyG's matter, but under autocast."""
    if not autocast(x.device) and any(t is not None and t.dtype != x.dtype for t in others):
        raise Unfused("mixed dtypes")


def prepare(*pairs: tuple[Any, Tensor | None]) -> None:
    """Let lazy projections take their sizes from the inputs, in PyG's order (it draws numbers)."""
    for lin, x in pairs:
        if lin is None or x is None:
            continue
        x = x.view(-1, 1) if x.dim() == 1 else x
        if isinstance(lin, Linear) and isinstance(lin.weight, UninitializedParameter):
            lin(x[:0])
        if not plain_tensors(getattr(lin, "weight", None)):
            raise Unfused("tensors of a subclass")
        if is_plain(lin) and lin.weight.shape[1] != x.shape[1]:
            raise Unfused("features of another width than the layer's")
