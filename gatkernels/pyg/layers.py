"""PyG's GATConv and GATv2Conv with the fused computation."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.parameter import UninitializedParameter
from torch_geometric import EdgeIndex
from torch_geometric.nn import Linear, MessagePassing, conv
from torch_geometric.nn.aggr import SumAggregation
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import is_sparse

from gatkernels import _dispatch, _layers
from gatkernels._checks import DTYPE_CODES
from gatkernels._dropin import DropIn, drop_ins
from gatkernels._large import add_bias
from gatkernels._layers import Side, attend, autocast, carried, is_plain, product, project
from gatkernels.functional import gatv2_attention
from gatkernels.pyg.adjacency import Adjacency, Unfused, adjacency, node_counts

_layers.LINEAR_TYPES.add(Linear)

#: What message passing calls; a layer that has its own computes with it.
METHODS = frozenset(
    ("propagate", "edge_updater", "edge_update", "message", "message_and_aggregate", "aggregate",
     "update")
)  # fmt: skip
HOOKS = tuple(
    f"_{step}_forward_{kind}"
    for step in ("propagate", "edge_update", "message", "aggregate", "message_and_aggregate")
    for kind in ("pre_hooks", "hooks")
)


class _Fused(DropIn):
    """What both layers share: when PyG's own code runs, and what comes before and after.

    ``propagate_type`` and ``edge_updater_type`` tell PyG's templates what its own source says in
    comments, which it does not find in a subclass of the same name.
    """

    edge_updater_type: ClassVar[dict[str, str]]
    propagate_type: ClassVar[dict[str, str]]
    #: Name of a method that a subclass of ours has overridden.
    _overridden: ClassVar[str | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = sorted(METHODS & cls.__dict__.keys())
        if own:
            cls._overridden = own[0]

    def _set_jittable_templates(self: Any, raise_on_error: bool = False) -> None:
        super()._set_jittable_templates(raise_on_error)  # type: ignore[misc]
        # PyG takes the parent's template for the original here, and explain mode would skip masks.
        type(self)._orig_propagate = MessagePassing.propagate
        type(self)._orig_edge_updater = MessagePassing.edge_updater

    @classmethod
    def why_not(cls, module: Any) -> str | None:
        if type(module.aggr_module) is not SumAggregation:
            return f"aggr={module.aggr!r}"
        if module.decomposed_layers != 1:
            return f"decomposed_layers={module.decomposed_layers}"
        if getattr(module, "normalize", False):  # PyG's development version
            return "normalize=True"
        return None

    def _check(self: Any, x_src: Any, x_dst: Any, edge_index: Any, *others: Tensor | None) -> None:
        """Raise Unfused where PyG's own code must run."""
        if reason := self.why_not(self) or _why_not_now(self):
            raise Unfused(reason)
        if x_dst is None and isinstance(edge_index, EdgeIndex):
            raise Unfused("an EdgeIndex without destination features")
        for x in (x_src,) if x_dst is None else (x_src, x_dst):
            if not isinstance(x, Tensor) or x.dim() != 2 or x.layout != torch.strided:
                raise Unfused("features that are not a dense matrix")
        case = _dispatch.Case(x_src.device, x_src.dtype)
        no_kernel = self.backend == "auto" and _dispatch.select("", "auto", case) == "reference"
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

    def _finish(
        self: Any, out: Tensor, residual: Tensor | None, alpha: Tensor | None, edges: Adjacency
    ) -> Any:
        out = out.flatten(1) if self.concat else out.mean(dim=1)
        if residual is not None:
            out = out + residual
        if self.bias is not None:
            out = add_bias(out, self.bias)
        return out if alpha is None else (out, edges.with_weights(alpha))


def _why_not_now(layer: Any) -> str | None:
    """What stands in the way at the moment, not in the layer's options."""
    if layer.explain:
        return "explain mode"
    if any(getattr(layer, hooks) for hooks in HOOKS):
        return "message passing hooks are registered"
    if layer._overridden or any(name in layer.__dict__ for name in METHODS - {"propagate"}):
        return "a method of message passing is overridden"
    if torch.compiler.is_compiling():
        return None
    if torch._C._is_tracing() or torch.onnx.is_in_onnx_export():
        return "torch.jit.trace or an ONNX export"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func transforms or forward-mode differentiation"
    return None


def _prepare(*pairs: tuple[Any, Tensor | None]) -> None:
    """Let lazy projections take their sizes from the inputs, in PyG's order (it draws numbers)."""
    for lin, x in pairs:
        if lin is None or x is None:
            continue
        x = x.view(-1, 1) if x.dim() == 1 else x
        if isinstance(lin, Linear) and isinstance(lin.weight, UninitializedParameter):
            lin(x[:0])
        elif is_plain(lin) and lin.weight.shape[1] != x.shape[1]:
            raise Unfused("features of another width than the layer's")


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
        edges = self._adjacency(x_src, x_dst, edge_index, edge_attr, size)
        edge_attr = edges.edge_attr if self.lin_edge is not None else None
        lin_src, lin_dst = self.lin_src or self.lin, self.lin_dst or self.lin
        _prepare((self.res, x_dst), (lin_src, x_src), (lin_dst, x_dst), (self.lin_edge, edge_attr))
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
        edges = self._adjacency(x_l, x_r, edge_index, edge_attr, None)
        edge_attr = edges.edge_attr
        if edge_attr is not None and self.lin_edge is None:
            raise Unfused("edge features without edge_dim")
        _prepare((self.res, x_r), (self.lin_l, x_l), (self.lin_r, x_r), (self.lin_edge, edge_attr))
        residual = None if self.res is None else project(x_r, self.res)
        shape = (self.heads, self.out_channels)
        source = project(x_l, self.lin_l).unflatten(1, shape)
        shared = self.lin_r is self.lin_l and x_r is x_l
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
