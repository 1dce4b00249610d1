"""PyG's HGTConv with the fused computation."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import HeteroLinear, conv
from torch_geometric.utils import is_sparse, to_edge_index

from gatkernels.functional import dot_attention
from gatkernels.graph import Graph
from gatkernels.layers.dropin import own, plain_tensors, runs
from gatkernels.ops.memo import Memo, watchable
from gatkernels.pyg.adjacency import Unfused
from gatkernels.pyg.fused import Fused

_forward_of_relations = own(HeteroLinear, "forward")


class HGTConv(Fused, conv.HGTConv):  # type: ignore[misc]
    """``torch_geometric.nn.HGTConv``, fused: arguments, parameters and results are PyG's.

    All relations are one graph, from a row for each source and relation to the nodes of all types:
    one softmax runs over the edges of all relations into a node.
    """

    original = conv.HGTConv
    edge_updater_type: ClassVar[dict[str, str]] = {}
    propagate_type: ClassVar = {"k": "Tensor", "q": "Tensor", "v": "Tensor", "edge_attr": "Tensor"}

    def forward(self, x_dict: dict[str, Tensor], edge_index_dict: dict[Any, Any]) -> Any:
        try:
            return self._fused(x_dict, edge_index_dict)
        except Unfused as reason:
            self.fell_back(str(reason))
        return super().forward(x_dict, edge_index_dict)

    def _fused(self, x_dict: dict[str, Tensor], edge_index_dict: dict[Any, Any]) -> Any:
        relations = self._relations(x_dict, edge_index_dict)
        targets = [t for t in self.in_channels if t in x_dict and t in self.dst_node_types]
        counts = {name: x.shape[0] for name, x in x_dict.items()}
        graph = _graph_of(relations, edge_index_dict, targets, counts)
        width, heads = self.out_channels, self.heads
        shape = (3, heads, width // heads)
        kqv = {name: columns.unflatten(1, shape) for name, columns in self.kqv_lin(x_dict).items()}
        q = torch.cat([kqv[name][:, 1] for name in targets])
        k, v = torch.cat([self._messages(r, kqv[r[0]]) for r in relations]).unbind(1)
        scale = 1.0 / math.sqrt(width // heads)
        out = dot_attention(graph, q, k, v, scale=scale, backend=self.backend).flatten(1)
        parts = out.split([counts[name] for name in targets])
        found = self.out_lin({n: F.gelu(part) for n, part in zip(targets, parts, strict=True)})
        return {name: self._past(name, found[name], x_dict[name]) for name in targets}

    def _relations(self, x_dict: dict[str, Tensor], edge_index_dict: dict[Any, Any]) -> list[Any]:
        """Those that are given, in their order; raises Unfused where PyG's own code must run."""
        relations = list(edge_index_dict)
        given, lins = list(edge_index_dict.values()), (self.k_rel, self.v_rel)
        self._check(list(x_dict.values()), given, *(lin.weight for lin in lins))
        if not all(runs(lin, _forward_of_relations) and lin.bias is None for lin in lins):
            raise Unfused("k_rel or v_rel is replaced or has hooks")
        if self.flow != "source_to_target":
            raise Unfused(f"flow='{self.flow}'")
        if any(r not in self.edge_types_map or r[0] not in x_dict for r in relations):
            raise Unfused("relations that the layer does not know, or without their sources")
        if not relations or any(r[2] not in x_dict for r in relations):
            raise Unfused("no relations, or some without their destinations")
        places = [self.edge_types_map[r] for r in relations]
        if places != sorted(places):  # PyG's products take the order of its metadata for granted
            raise Unfused("relations in another order than the layer's")
        return relations

    def _messages(self, relation: Any, rows: Tensor) -> Tensor:
        """Keys and values ``[N, 2, H, D]`` of one relation, with its scale, of ``rows``
        ``[N, 3, H, D]``."""
        place, types = self.edge_types_map[relation], len(self.edge_types)
        k_rel, v_rel = (
            lin.weight.unflatten(0, (self.heads, types))[:, place]  # [H, D, D]
            for lin in (self.k_rel, self.v_rel)
        )
        scale = self.p_rel["__".join(relation)].view(-1, 1, 1)
        weights = torch.stack([k_rel * scale, v_rel])
        return torch.einsum("nshd,shde->nshe", rows[:, ::2], weights)

    def _past(self, name: str, out: Tensor, x: Tensor) -> Tensor:
        if out.shape[-1] != x.shape[-1]:
            return out
        share = self.skip[name].sigmoid()
        mixed: Tensor = share * out + (1 - share) * x
        return mixed


def _graph_of(
    relations: list[Any],
    edge_index_dict: dict[Any, Any],
    targets: list[str],
    counts: dict[str, int],
) -> Graph:
    """All relations in one graph; remembered while their edges live unchanged."""
    given = [edge_index_dict[r] for r in relations]
    sources = [counts[r[0]] for r in relations]
    first_source = [0, *accumulate(sources)]
    first_target = dict(zip(targets, [0, *accumulate(counts[t] for t in targets)], strict=False))
    starts = tuple(zip(first_source, (first_target[r[2]] for r in relations), strict=False))
    sizes = first_source[-1], sum(counts[t] for t in targets)
    plain = tuple(e for e in given if isinstance(e, Tensor) and e.layout == torch.strided)
    cached = len(plain) == len(given) and all(map(watchable, plain))
    if not plain_tensors(*plain):
        raise Unfused("tensors of a subclass")
    key = (starts, sizes)
    found = _memo.find(plain[0], plain, key) if cached else None
    if found is None:
        try:
            ids = [_ids(e, start) for e, start in zip(given, starts, strict=True)]
            found = Graph.from_edge_index(torch.cat(ids, 1), sizes)
        except (TypeError, ValueError, IndexError) as error:
            raise Unfused("an edge_index is not [2, E] ids of nodes") from error
        if cached:
            _memo.keep(plain[0], plain, key, found)
    return found


def _ids(edge_index: Any, starts: tuple[int, int]) -> Tensor:
    """``[2, E]`` in the numbers of the whole graph."""
    if is_sparse(edge_index):
        edge_index = to_edge_index(edge_index)[0].flip([0])
    src, dst = edge_index
    return torch.stack([src + starts[0], dst + starts[1]])


_memo: Memo[Graph] = Memo()
