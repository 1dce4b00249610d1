"""PyG's GATConv and GATv2Conv with the fused computation."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter
from torch_geometric import EdgeIndex
from torch_geometric.nn import Linear, MessagePassing, conv
from torch_geometric.nn.aggr import SumAggregation
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import is_sparse

from gatkernels import backends
from gatkernels.functional import gatv2_attention
from gatkernels.layers import shared
from gatkernels.layers.dropin import DropIn, drop_ins, own, plain_tensors
from gatkernels.layers.shared import Side, attend, autocast, carried, is_plain, product, project
from gatkernels.ops.checks import DTYPE_CODES
from gatkernels.ops.dense import add_bias
from gatkernels.pyg import _as_pyg
from gatkernels.pyg.adjacency import Adjacency, Unfused, adjacency, node_counts

shared.LINEAR_TYPES[Linear] = own(Linear, "forward")


class _Fused(DropIn):
    """What both layers share: when PyG's own code runs, and what comes before and after.

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

    def _check(self: Any, x_src: Any, x_dst: Any, edge_index: Any, *others: Tensor | None) -> None:
        """Raise Unfused where PyG's own code must run."""
        if reason := self.why_not(self) or self.why_not_now(self):
            raise Unfused(reason)
        if x_dst is None and isinstance(edge_index, EdgeIndex):
            raise Unfused("an EdgeIndex without destination features")
        for x in (x_src,) if x_dst is None else (x_src, x_dst):
            if not isinstance(x, Tensor) or x.dim() != 2 or x.layout != torch.strided:
                raise Unfused("features that are not a dense matrix")
        if not plain_tensors(x_src, x_dst, self.bias, *others):
            raise Unfused("tensors of a subclass")
        case = backends.Case(x_src.device, x_src.dtype)
        no_kernel = self.backend == "auto" and backends.select("", "auto", case) == "reference"
        if no_kernel or x_src.dtype not in DTYPE_CODES:
            raise Unfused(f"no kernel for {x_src.dtype} on {x_src.device.type}")
        mixed = autocast(x_src.device)
        for value in (x_dst, self.bias, *others):
            if value is not None and value.dtype != x_src.dtype and not mixed:
                raise Unfused("mixed dtypes")
        if isinstance(edge_index, Tensor) and edge_index.device != x_src.device:
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

    def _check_weights(self: Any, *atts: Tensor | None) -> None:
        """PyG broadcasts attention vectors of other shapes, and has its own errors."""
        shape = (1, self.heads, self.out_channels)
        if self.heads < 1 or any(att is not None and att.shape != shape for att in atts):
            raise Unfused("no heads, or attention vectors of another shape")

    def _finish(
        self: Any, out: Tensor, residual: Tensor | None, alpha: Tensor | None, edges: Adjacency
    ) -> Any:
        out = out.flatten(1) if self.concat else out.mean(dim=1)
        if residual is not None:
            out = out + residual
        if self.bias is not None:
            out = add_bias(out, self.bias)
        return out if alpha is None else (out, edges.with_weights(alpha))


def _prepare(*pairs: tuple[Any, Tensor | None]) -> None:
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


def _check_rows(lin: Any, edges: Adjacency) -> None:
    """A projection that does more than multiply must see the rows that PyG shows it."""
    if edges.loops is not None and not is_plain(lin):
        raise Unfused("lin_edge is replaced or has hooks")


class GATConv(_Fused, conv.GATConv):  # type: ignore[misc]
    """``torch_geometric.nn.GATConv``, fused: every argument, parameter and result is PyG's."""

    original = conv.GATConv
    edge_updater_type: ClassVar = {"alpha": "OptPairTensor", "edge_attr": "OptTensor"}
    propagate_type: ClassVar = {"x": "OptPairTensor", "alpha": "Tensor"}

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor | None],
        edge_index: Any,
        edge_attr: Tensor | None = None,
        size: Any = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        try:
            return self._fused(x, edge_index, edge_attr, size, bool(return_attention_weights))
        except Unfused as reason:
            self.fell_back(str(reason))
        return super().forward(x, edge_index, edge_attr, size, return_attention_weights)

    def _fused(
        self, x: Any, edge_index: Any, edge_attr: Tensor | None, size: Any, attention: bool
    ) -> Any:
        x_src, x_dst = (x, x) if isinstance(x, Tensor) else x
        if self.lin_edge is None:
            edge_attr = None
        self._check(x_src, x_dst, edge_index, edge_attr, self.att_src)
        self._check_weights(self.att_src, self.att_dst, self.att_edge)
        edges = self._adjacency(x_src, x_dst, edge_index, edge_attr, size)
        edge_attr = edges.edge_attr if self.lin_edge is not None else None
        if edges.graph.num_edges == 0:  # PyG does not look at their features then
            edge_attr = None
        shared = self.lin is not None
        lin_src, lin_dst = (self.lin, self.lin) if shared else (self.lin_src, self.lin_dst)
        _prepare((self.res, x_dst), (lin_src, x_src), (lin_dst, x_dst), (self.lin_edge, edge_attr))
        if edge_attr is not None:
            _check_rows(self.lin_edge, edges)
        residual = None if self.res is None or x_dst is None else project(x_dst, self.res)
        source = Side(x_src, lin_src, self.att_src)
        target = None if x_dst is None else Side(x_dst, lin_dst, self.att_dst)
        out, alpha = attend(
            edges.graph,
            source,
            target,
            None if edge_attr is None else self._edge_score(edge_attr),
            negative_slope=self.negative_slope,
            dropout=self.dropout if self.training else 0.0,
            return_attention=attention,
            backend=self.backend,
        )
        return self._finish(out, residual, alpha, edges)

    def _edge_score(self, edge_attr: Tensor) -> Tensor:
        """``[E, H]``; as ``edge_attr (W_e a_e)`` where that is the same."""
        if edge_attr.dim() == 1:
            edge_attr = edge_attr.view(-1, 1)
        if is_plain(self.lin_edge) and not autocast(edge_attr.device):
            return product(edge_attr, carried(self.lin_edge.weight, self.att_edge))
        projected = project(edge_attr, self.lin_edge)
        score: Tensor = (projected.unflatten(1, (self.heads, -1)) * self.att_edge).sum(-1)
        return score


class GATv2Conv(_Fused, conv.GATv2Conv):  # type: ignore[misc]
    """``torch_geometric.nn.GATv2Conv``, fused: every argument, parameter and result is PyG's."""

    original = conv.GATv2Conv
    edge_updater_type: ClassVar = {"x": "PairTensor", "edge_attr": "OptTensor"}
    propagate_type: ClassVar = {"x": "PairTensor", "alpha": "Tensor"}

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Any,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        try:
            return self._fused(x, edge_index, edge_attr, bool(return_attention_weights))
        except Unfused as reason:
            self.fell_back(str(reason))
        return super().forward(x, edge_index, edge_attr, return_attention_weights)

    def _fused(self, x: Any, edge_index: Any, edge_attr: Tensor | None, attention: bool) -> Any:
        x_l, x_r = (x, x) if isinstance(x, Tensor) else x
        if x_r is None:
            raise Unfused("no destination features")
        self._check(x_l, x_r, edge_index, edge_attr, self.att)
        self._check_weights(self.att)
        edges = self._adjacency(x_l, x_r, edge_index, edge_attr, None)
        edge_attr = edges.edge_attr
        if edge_attr is not None and self.lin_edge is None:
            raise Unfused("edge features without edge_dim")
        _prepare((self.res, x_r), (self.lin_l, x_l), (self.lin_r, x_r), (self.lin_edge, edge_attr))
        if edge_attr is not None:
            _check_rows(self.lin_edge, edges)
        residual = None if self.res is None else project(x_r, self.res)
        shape = (self.heads, self.out_channels)
        source = project(x_l, self.lin_l).unflatten(1, shape)
        shared = self.share_weights and isinstance(x, Tensor)
        target = source if shared else project(x_r, self.lin_r).unflatten(1, shape)
        if edge_attr is not None:
            edge_attr = edge_attr.view(-1, 1) if edge_attr.dim() == 1 else edge_attr
            edge_attr = project(edge_attr, self.lin_edge).unflatten(1, shape)
        result = gatv2_attention(
            edges.graph,
            source,
            target,
            self.att[0],
            edge_attr,
            negative_slope=self.negative_slope,
            dropout=self.dropout if self.training else 0.0,
            return_attention=attention,
            backend=self.backend,
        )
        out, alpha = result if attention else (result, None)
        return self._finish(out, residual, alpha, edges)


DROP_INS = drop_ins(GATConv, GATv2Conv)
