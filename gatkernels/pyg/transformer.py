"""PyG's TransformerConv with the fused computation."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch_geometric.nn import conv

from gatkernels.graph import Graph
from gatkernels.layers.shared import is_plain, mean_of_heads
from gatkernels.layers.transformer import attend, queries_keys_values, with_skip
from gatkernels.pyg.adjacency import Unfused
from gatkernels.pyg.fused import Fused, check_dtypes, prepare


class TransformerConv(Fused, conv.TransformerConv):  # type: ignore[misc]
    """``torch_geometric.nn.TransformerConv``, fused: arguments, parameters and results are PyG's.

    Of keys, queries, values and the way past, what has one input is one product. Edge features
    are projected at nodes, unless they are wider than what they are projected to.
    """

    original = conv.TransformerConv
    edge_updater_type: ClassVar[dict[str, str]] = {}
    propagate_type: ClassVar = {
        "query": "Tensor",
        "key": "Tensor",
        "value": "Tensor",
        "edge_attr": "OptTensor",
    }
    add_self_loops = False
    fill_value = None

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Any,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        try:
            return self._fused(x, edge_index, edge_attr, return_attention_weights)
        except Unfused as reason:
            self.fell_back(str(reason), edge_index)
        return super().forward(x, edge_index, edge_attr, return_attention_weights)

    def _fused(self, x: Any, edge_index: Any, edge_attr: Tensor | None, attention: Any) -> Any:
        x_l, x_r = (x, x) if isinstance(x, Tensor) else x
        self._check((x_l, x_r), (edge_index,), edge_attr)
        if self.heads < 1:
            raise Unfused("no heads")
        edges = self._adjacency(x_l, x_r, edge_index, edge_attr, None)
        edge_attr = edges.edge_attr
        self._prepare(x_l, x_r, edge_attr)
        *qkv, skip = queries_keys_values(self, x_l, x_r)
        out, alpha = self._attend(edges.graph, qkv, edge_attr, isinstance(attention, bool))
        out = out.flatten(1) if self.concat else mean_of_heads(out)
        if skip is not None:
            out = with_skip(out, skip, self.lin_beta)
        if alpha is None:
            return out
        if isinstance(edge_index, Tensor):
            return out, (edge_index, alpha)
        return out, edges.with_weights(alpha)

    def _prepare(self, x_l: Tensor, x_r: Tensor, edge_attr: Tensor | None) -> None:
        if (edge_attr is None) != (self.lin_edge is None):
            raise Unfused("edge features without edge_dim, or none with it")
        if edge_attr is not None and edge_attr.dim() != 2:
            raise Unfused("edge_attr is not [E, D]")
        skip = x_r if self.root_weight else None
        pairs = ((self.lin_query, x_r), (self.lin_key, x_l), (self.lin_value, x_l))
        prepare(*pairs, (self.lin_edge, edge_attr), (self.lin_skip, skip))
        if edge_attr is not None and not is_plain(self.lin_edge):
            raise Unfused("lin_edge is replaced or has hooks")
        lins = (self.lin_query, self.lin_key, self.lin_value, self.lin_edge, self.lin_skip)
        check_dtypes(x_l, *(getattr(lin, "weight", None) for lin in lins))

    def _attend(self, graph: Graph, qkv: Any, edge_attr: Any, attention: bool) -> Any:
        """``out [N, H, C]``, and ``alpha`` or None, before dropout as PyG has it."""
        given = (*qkv, edge_attr, self.lin_edge)
        dropout = self.dropout if self.training else 0.0
        how: dict[str, Any] = {"return_attention": attention, "backend": self.backend}
        out, alpha = attend(graph, *given, **how | {"dropout": dropout})
        if attention and dropout > 0.0:
            _, alpha = attend(graph, *given, **how)
        return out, alpha
