"""PyG's GATConv and GATv2Conv with the fused computation."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn import conv

from gatkernels.functional import gatv2_attention
from gatkernels.layers.shared import Side, attend, autocast, carried, is_plain, product, project
from gatkernels.ops.dense import add_bias
from gatkernels.pyg.adjacency import Adjacency, Unfused
from gatkernels.pyg.fused import Fused, prepare


class _GAT(Fused):
    """What comes before and after in both layers."""

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


def _check_rows(lin: Any, edges: Adjacency) -> None:
    """A projection that does more than multiply must see the rows that PyG shows it."""
    if edges.loops is not None and not is_plain(lin):
        raise Unfused("lin_edge is replaced or has hooks")


class GATConv(_GAT, conv.GATConv):  # type: ignore[misc]
    """``torch_geometric.nn.GATConv``, fused: every argument, parameter and result is PyG's.

    Beside PyG's adjacencies, ``edge_index`` may be a :class:`gatkernels.Graph` or a
    :class:`gatkernels.distributed.ShardedGraph`, which is used as it is: ``add_self_loops`` and
    ``fill_value`` add nothing to it (build it with ``self_loops=True``), and ``edge_attr`` has a
    row for each of its ``num_edges``, self loops included.
    """

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
            self.fell_back(str(reason), edge_index)
        return super().forward(x, edge_index, edge_attr, size, return_attention_weights)

    def _fused(
        self, x: Any, edge_index: Any, edge_attr: Tensor | None, size: Any, attention: bool
    ) -> Any:
        x_src, x_dst = (x, x) if isinstance(x, Tensor) else x
        if self.lin_edge is None:
            edge_attr = None
        if x_dst is None and isinstance(edge_index, EdgeIndex):
            raise Unfused("an EdgeIndex without destination features")
        features = (x_src,) if x_dst is None else (x_src, x_dst)
        self._check(features, (edge_index,), edge_attr, self.att_src, self.bias)
        self._check_weights(self.att_src, self.att_dst, self.att_edge)
        edges = self._adjacency(x_src, x_dst, edge_index, edge_attr, size)
        edge_attr = edges.edge_attr if self.lin_edge is not None else None
        if edges.graph.num_edges == 0:  # PyG does not look at their features then
            edge_attr = None
        shared = self.lin is not None
        lin_src, lin_dst = (self.lin, self.lin) if shared else (self.lin_src, self.lin_dst)
        prepare((self.res, x_dst), (lin_src, x_src), (lin_dst, x_dst), (self.lin_edge, edge_attr))
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


class GATv2Conv(_GAT, conv.GATv2Conv):  # type: ignore[misc]
    """``torch_geometric.nn.GATv2Conv``, fused: every argument, parameter and result is PyG's.

    Beside PyG's adjacencies, ``edge_index`` may be a :class:`gatkernels.Graph` or a
    :class:`gatkernels.distributed.ShardedGraph`, which is used as it is: ``add_self_loops`` and
    ``fill_value`` add nothing to it (build it with ``self_loops=True``), and ``edge_attr`` has a
    row for each of its ``num_edges``, self loops included.
    """

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
            self.fell_back(str(reason), edge_index)
        return super().forward(x, edge_index, edge_attr, return_attention_weights)

    def _fused(self, x: Any, edge_index: Any, edge_attr: Tensor | None, attention: bool) -> Any:
        x_l, x_r = (x, x) if isinstance(x, Tensor) else x
        if x_r is None:
            raise Unfused("no destination features")
        self._check((x_l, x_r), (edge_index,), edge_attr, self.att, self.bias)
        self._check_weights(self.att)
        edges = self._adjacency(x_l, x_r, edge_index, edge_attr, None)
        edge_attr = edges.edge_attr
        if edge_attr is not None and self.lin_edge is None:
            raise Unfused("edge features without edge_dim")
        prepare((self.res, x_r), (self.lin_l, x_l), (self.lin_r, x_r), (self.lin_edge, edge_attr))
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
