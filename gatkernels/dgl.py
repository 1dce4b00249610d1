"""Fused drop-ins for DGL's graph attention: same arguments, parameters and results.

``GATConv``, ``GATv2Conv`` and ``EdgeGATConv`` are subclasses of DGL's layers that override the
computation alone. What the fused path cannot do runs DGL's own code, which also
raises DGL's own errors. With attention dropout the random stream is gatkernels' own.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

try:
    import dgl
    from dgl.nn.pytorch import conv
except ImportError as error:
    raise ImportError("gatkernels.dgl needs DGL >= 1.1: https://www.dgl.ai/pages/start") from error

from gatkernels import backends
from gatkernels.functional import attention_weights, gat_attention, gatv2_attention
from gatkernels.graph import Graph
from gatkernels.layers.dropin import DropIn, drop_ins, own, plain_tensors, runs
from gatkernels.layers.edge_sum import Group, edge_sum, groups_of
from gatkernels.layers.shared import Side, attend, autocast, carried, is_plain, product, project
from gatkernels.ops import build
from gatkernels.ops.dense import add_bias

__all__ = ["DROP_INS", "EdgeGATConv", "GATConv", "GATv2Conv"]


_LAYERS = (conv.GATConv, conv.GATv2Conv, conv.EdgeGATConv)
_forwards = {cls: own(cls, "forward") for cls in _LAYERS}
_modules = {cls: sys.modules[cls.__module__] for cls in _LAYERS}
_edge_softmax = dgl.nn.functional.edge_softmax
_dropout, _leaky_relu = own(nn.Dropout, "forward"), own(nn.LeakyReLU, "forward")
_messages = {name: own(dgl.DGLGraph, name) for name in ("apply_edges", "update_all")}


class _Unfused(Exception):
    """DGL's own code must run, to do what the kernels cannot or to raise its own error."""


class _Edges:
    """The edges of a DGL graph with one edge type, in the form the kernels read.

    Holds DGL's arrays, so that as long as it lives their memory is no other graph's.
    """

    def __init__(self, graph: Any, csc: tuple[Tensor, Tensor, Tensor]) -> None:
        self.csc = csc
        counts = graph.num_src_nodes(), graph.num_dst_nodes()
        with build.plain():  # DGL's graph may have been given to a transform, which this outlives
            self.graph = Graph(*counts, _arrays(*csc), _arrays(*graph.adj_tensors("csr")))
            self.full = bool((csc[0].diff() > 0).all())  # every destination has an incoming edge
        self._groups: list[Group] | None = None

    def is_of(self, csc: tuple[Tensor, ...]) -> bool:
        pairs = zip(self.csc, csc, strict=True)
        return all(a.data_ptr() == b.data_ptr() and a.shape == b.shape for a, b in pairs)

    def edge_sum(self, alpha: Tensor, features: Tensor) -> Tensor:
        """``sum_e alpha[e, h] features[e]`` over the edges into a node, ``[Nd, H, D]``."""
        if self._groups is None:
            self._groups = groups_of(self.graph)
        return edge_sum(alpha, features, self._groups, self.graph.num_dst)

    def __reduce__(self) -> Any:
        return _forgotten, ()  # a copy or pickle of a DGL graph goes without


def _forgotten() -> None:
    return None


def _arrays(indptr: Tensor, indices: Tensor, eid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if eid.numel() != indices.numel():  # DGL leaves out edge ids that are 0, 1, 2 ...
        eid = torch.arange(indices.numel(), device=indices.device)
    return indptr.long(), indices.int(), eid.int()


_KEY = "_gatkernels_edges"


def _edges_of(graph: Any) -> _Edges:
    """The edges of ``graph``, kept with it for as long as its structure stays the same.

    DGL never changes an index, but makes a new one where edges or nodes come or go. It also makes
    one each time a relation of a heterogeneous graph is taken out (``g["follows"]``); that shares
    the edge features with the whole, so they keep what the arrays say is still valid.
    """
    index, frame = graph._graph.__dict__, graph._edge_frames[0].__dict__
    found: _Edges | None = index.get(_KEY)
    if found is None:
        formats = graph.formats()
        if not {"csr", "csc"} <= {*formats["created"], *formats["not created"]}:
            raise _Unfused("a graph restricted to other formats than CSR and CSC")
        csc = graph.adj_tensors("csc")
        found = frame.get(_KEY)
        if found is None or not found.is_of(csc):
            found = _Edges(graph, csc)
        index[_KEY] = frame[_KEY] = found
    return found


class _Fused(DropIn):
    """What the layers share: when DGL's own code runs, and what comes before and after."""

    @classmethod
    def why_not(cls, module: Any) -> str | None:
        for name, kind in (("attn_drop", nn.Dropout), ("leaky_relu", nn.LeakyReLU)):
            found = type(getattr(module, name))
            if found is not kind:
                return f"{name} is a {found.__name__}"
        return None

    @classmethod
    def computes_alike(cls, kind: type[nn.Module]) -> bool:
        return kind.forward is _forwards[cls.original]

    @classmethod
    def why_not_now(cls, module: Any) -> str | None:
        inner = module._modules
        if not (runs(inner["attn_drop"], _dropout) and runs(inner["leaky_relu"], _leaky_relu)):
            return "attn_drop or leaky_relu has hooks or another forward"
        parent = next(layer for layer in _LAYERS if issubclass(cls.original, layer))
        replaced = _modules[parent].edge_softmax is not _edge_softmax
        if replaced or cls.original.forward is not _forwards[parent]:
            return "edge_softmax or the layer's forward is replaced"
        return None

    def _options(self: Any, attention: bool) -> dict[str, Any]:
        drop = self.attn_drop
        return {
            "negative_slope": self.leaky_relu.negative_slope,
            "dropout": drop.p if drop.training else 0.0,
            "return_attention": attention,
            "backend": self.backend,
        }

    def _edges(self: Any, graph: Any, feat: Any, *others: Tensor | None) -> _Edges:
        """The edges; raises _Unfused where DGL's own code must run, before any number is drawn."""
        if reason := self.why_not(self) or self.why_not_now(self):
            raise _Unfused(reason)
        if not isinstance(graph, dgl.DGLGraph) or len(graph.canonical_etypes) != 1:
            raise _Unfused("not a graph with one edge type")
        if any(getattr(type(graph), name) is not genuine for name, genuine in _messages.items()):
            raise _Unfused("a graph with message passing of its own")
        counts = graph.num_src_nodes(), graph.num_dst_nodes()
        features = feat if isinstance(feat, tuple) else (feat,)
        whole = graph.is_block or counts[0] == counts[1]  # one tensor can serve both sides
        if len(features) != 2 and not (len(features) == 1 and whole):
            raise _Unfused("features that are not one tensor for all nodes or a pair")
        sizes = (self._in_src_feats, self._in_dst_feats)
        for x, count, size in zip(features, counts, sizes, strict=False):
            if (
                not isinstance(x, Tensor)
                or x.dim() < 2
                or (x.shape[0], x.shape[-1]) != (count, size)
            ):
                raise _Unfused("features that are not a row of the layer's size for each node")
        if features[0].shape[1:-1] != features[-1].shape[1:-1]:
            raise _Unfused("features of sources and destinations that differ in other dimensions")
        weight = next(self.parameters())
        if not plain_tensors(*features, *others, *self._parameters.values()):
            raise _Unfused("tensors of a subclass")
        for x in (*features, *(x for x in others if x is not None)):
            if x.layout != torch.strided or x.dtype != weight.dtype:
                raise _Unfused("features that are not dense, or not of the parameters' dtype")
            if x.device != graph.device:
                raise _Unfused("features on another device than the graph")
        if autocast(weight.device):
            raise _Unfused("autocast")
        case = backends.Case(weight.device, weight.dtype)
        if self.backend == "auto" and backends.select("GATConv", "auto", case) == "reference":
            raise _Unfused(f"no kernel for {weight.dtype} on {weight.device.type}")
        if max(*counts, graph.num_edges()) >= 2**31:
            raise _Unfused("2^31 nodes or edges")
        edges = _edges_of(graph)
        if not (edges.full or self._allow_zero_in_degree):
            raise _Unfused("nodes without incoming edges, which are not allowed")
        return edges

    def _dropped(self: Any, graph: Any, feat: Any) -> tuple[Tensor, Tensor]:
        """Source and destination features after ``feat_drop``."""
        if isinstance(feat, tuple):
            return self.feat_drop(feat[0]), self.feat_drop(feat[1])
        h = self.feat_drop(feat)
        return h, h[: graph.num_dst_nodes()] if graph.is_block else h

    def _finish(
        self: Any, out: Tensor, h_dst: Tensor, alpha: Tensor | None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Residual, bias, activation. out ``[Nd, *, H, C]``, alpha ``[E, *, H]`` or None."""
        out = out.flatten(-2)
        if self.res_fc is not None:
            out = out + project(h_dst, self.res_fc)
        if isinstance(self.bias, Tensor):  # GATv2Conv's is a bool
            out = add_bias(out, self.bias)
        out = out.unflatten(-1, (self._num_heads, self._out_feats))
        if self.activation:
            out = self.activation(out)
        return out if alpha is None else (out, alpha[..., None])

    def _projections(self: Any, feat: Any) -> tuple[Any, Any]:
        if hasattr(self, "fc"):
            return self.fc, self.fc
        if not isinstance(feat, tuple):
            raise _Unfused("one feature tensor for two projections")
        return self.fc_src, self.fc_dst


class GATConv(_Fused, conv.GATConv):  # type: ignore[misc]
    """``dgl.nn.GATConv``, fused: every argument, parameter and result is DGL's."""

    original = conv.GATConv

    def forward(
        self, graph: Any, feat: Any, edge_weight: Tensor | None = None, get_attention: bool = False
    ) -> Any:
        try:
            lin_src, lin_dst = self._projections(feat)
            edges = self._edges(graph, feat, edge_weight)
            if edge_weight is not None:
                self._check_weight(edges, feat, edge_weight)
        except _Unfused as reason:
            self.fell_back(str(reason))
            return super().forward(graph, feat, edge_weight, get_attention)
        h_src, h_dst = self._dropped(graph, feat)
        options = self._options(get_attention)
        if h_src.dim() == 2 and edge_weight is None:
            source, target = Side(h_src, lin_src, self.attn_l), Side(h_dst, lin_dst, self.attn_r)
            out, alpha = attend(edges.graph, source, target, **options)
            return self._finish(out, h_dst, alpha)
        shape, batch = (self._num_heads, self._out_feats), h_src.shape[1:-1]
        x = project(h_src, lin_src).unflatten(-1, shape)  # [Ns, *, H, C]
        same = h_dst is h_src and lin_dst is lin_src
        x_dst = x if same else project(h_dst, lin_dst).unflatten(-1, shape)
        # more feature sets are more heads
        scores = [(t * a).sum(-1).flatten(1) for t, a in ((x, self.attn_l), (x_dst, self.attn_r))]
        x = x.flatten(1, -2)
        if edge_weight is None:
            result = gat_attention(edges.graph, x, *scores, **options)
            out, alpha = result if get_attention else (result, None)
        else:
            del options["return_attention"]
            alpha = attention_weights(edges.graph, *scores, **options) * edge_weight[:, None]
            out = dgl.ops.u_mul_e_sum(graph, x, alpha[..., None])
            alpha = alpha if get_attention else None
        if alpha is not None:
            alpha = alpha.unflatten(1, (*batch, shape[0]))
        return self._finish(out.unflatten(1, (*batch, shape[0])), h_dst, alpha)

    def _check_weight(self, edges: _Edges, feat: Any, weight: Tensor) -> None:
        x = feat[0] if isinstance(feat, tuple) else feat
        if x.dim() != 2 or weight.shape != (edges.graph.num_edges,):
            raise _Unfused("edge_weight that is not [E], or beside more feature dimensions")


class GATv2Conv(_Fused, conv.GATv2Conv):  # type: ignore[misc]
    """``dgl.nn.GATv2Conv``, fused: every argument, parameter and result is DGL's."""

    original = conv.GATv2Conv

    def forward(self, graph: Any, feat: Any, get_attention: bool = False) -> Any:
        try:
            edges = self._edges(graph, feat)
            if any(x.dim() != 2 for x in (feat if isinstance(feat, tuple) else (feat,))):
                raise _Unfused("features that are not a matrix")
        except _Unfused as reason:
            self.fell_back(str(reason))
            return super().forward(graph, feat, get_attention)
        h_src, h_dst = self._dropped(graph, feat)
        shape = (self._num_heads, self._out_feats)
        source = project(h_src, self.fc_src).unflatten(1, shape)
        if self.share_weights and not isinstance(feat, tuple):
            target = source[: edges.graph.num_dst]
        else:
            target = project(h_dst, self.fc_dst).unflatten(1, shape)
        options = self._options(get_attention)
        result = gatv2_attention(edges.graph, source, target, self.attn[0], **options)
        out, alpha = result if get_attention else (result, None)
        return self._finish(out, h_dst, alpha)


class EdgeGATConv(_Fused, conv.EdgeGATConv):  # type: ignore[misc]
    """``dgl.nn.EdgeGATConv``, fused: every argument, parameter and result is DGL's.

    Its messages are ``W x_j + W_e e_ij``. The second part is summed before it is projected,
    ``sum_e alpha_e W_e e_ij = W_e sum_e alpha_e e_ij``, so nothing of size ``E x H x C`` is made.
    """

    original = conv.EdgeGATConv

    def forward(self, graph: Any, feat: Any, edge_feat: Tensor, get_attention: bool = False) -> Any:
        try:
            lin_src, lin_dst = self._projections(feat)
            edges = self._edges(graph, feat, edge_feat)
            self._check_edges(edges, feat, edge_feat)
        except _Unfused as reason:
            self.fell_back(str(reason))
            return super().forward(graph, feat, edge_feat, get_attention)
        h_src, h_dst = self._dropped(graph, feat)
        weight = self.fc_edge.weight
        out, alpha = attend(
            edges.graph,
            Side(h_src, lin_src, self.attn_l),
            Side(h_dst, lin_dst, self.attn_r),
            product(edge_feat, carried(weight, self.attn_edge)),
            **self._options(True),
        )
        assert alpha is not None
        shape = (self._num_heads, self._out_feats)
        summed = edges.edge_sum(alpha, edge_feat)  # [Nd, H, D]
        out = out + torch.einsum("nhd,hcd->nhc", summed, weight.unflatten(0, shape))
        return self._finish(out, h_dst, alpha if get_attention else None)

    def _check_edges(self, edges: _Edges, feat: Any, edge_feat: Tensor) -> None:
        if not is_plain(self.fc_edge) or self.fc_edge.bias is not None:
            raise _Unfused("fc_edge is replaced or has hooks")
        x = feat[0] if isinstance(feat, tuple) else feat
        expected = (edges.graph.num_edges, self.fc_edge.in_features)
        if x.dim() != 2 or edge_feat.shape != expected:
            raise _Unfused("features that are not a matrix, a row for each node and edge")
        # DGL makes three tensors [E, H, C]; the sums, [Nd, H, D], must not be larger.
        smaller = 3 * max(edges.graph.num_edges, edges.graph.num_dst) * self._out_feats
        if edges.graph.num_dst * edge_feat.shape[1] > smaller:
            raise _Unfused("edge features much wider than what they are projected to")


DROP_INS = drop_ins(GATConv, GATv2Conv, EdgeGATConv)
