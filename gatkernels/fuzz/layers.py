"""A layer beside PyG's or DGL's of the same weights, in float64: results and all gradients."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gatkernels.fuzz.edges import EdgeSpec

#: Packages of layers, with the peer that each stands in for.
PEERS = {
    "gatkernels.pyg": "torch_geometric.nn",
    "gatkernels.nn": "torch_geometric.nn",
    "gatkernels.dgl": "dgl.nn",
}
#: Of the largest value that is compared.
TOLERANCE = 1e-10


@dataclass(frozen=True)
class LayerCase:
    """``package``'s ``layer`` beside its peer's.

    Attributes:
        options: Arguments of the layer by name, without its sizes.
        features: Of nodes; of edges where the options have ``edge_dim``.
        bipartite: Whether both sides have features of their own.
        given_graph: Whether ours is given a :class:`gatkernels.Graph`.
    """

    package: str = "gatkernels.pyg"
    layer: str = "GATConv"
    edges: EdgeSpec = field(default_factory=EdgeSpec)
    features: int = 1
    channels: int = 1
    heads: int = 1
    options: tuple[tuple[str, Any], ...] = ()
    bipartite: bool = False
    given_graph: bool = False
    seed: int = 0

    def check(self) -> None:
        """Raises: AssertionError, where a result differs, or ours alone fails."""
        found: list[dict[str, Tensor] | Exception] = []
        for package in (self.package, PEERS[self.package]):
            generator = torch.Generator().manual_seed(self.seed)
            try:
                layer = self._layer(package)
                for parameter in layer.parameters():  # biases, too
                    nn.init.normal_(parameter, generator=generator)
                found.append(self._outcome(package, layer))
            except Exception as error:
                found.append(error)
        ours, theirs = found
        if isinstance(theirs, Exception):  # DGL's reshapes fail without nodes, ours do not
            return
        if isinstance(ours, Exception):
            raise AssertionError(f"{type(ours).__name__}: {ours}") from ours
        assert ours.keys() == theirs.keys(), f"results {sorted(ours)} and {sorted(theirs)}"
        for name, expected in theirs.items():
            got = ours[name]
            assert got.shape == expected.shape, f"{name}: {got.shape} for {expected.shape}"
            size = 1.0 + float(expected.abs().amax()) if expected.numel() else 1.0
            worst = float((got - expected).abs().amax()) if expected.numel() else 0.0
            if not worst <= TOLERANCE * size:
                raise AssertionError(f"{name}: off by {worst:.2e} where values reach {size:.2e}")

    def _layer(self, package: str) -> nn.Module:
        made = getattr(importlib.import_module(package), self.layer)
        sizes = (self.features, self.features) if self.bipartite else self.features
        options = dict(self.options)
        if PEERS[self.package] == "dgl.nn":
            options["allow_zero_in_degree"] = True
        return made(sizes, self.channels, self.heads, **options).double()  # type: ignore[no-any-return]

    def _outcome(self, package: str, layer: nn.Module) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed + 1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        edge_index, edge_dim = self.edges.edge_index(), dict(self.options).get("edge_dim")
        named = {"x": normal(self.edges.num_src, self.features)}
        if self.bipartite:
            named["x_dst"] = normal(self.edges.num_dst, self.features)
        if edge_dim is not None:
            named["edge_attr"] = normal(edge_index.shape[1], edge_dim)
        leaves = {name: t.requires_grad_() for name, t in named.items()}
        x: Any = leaves["x"]
        if self.bipartite:
            x = (x, leaves["x_dst"])
        out, alpha = self._call(package, layer, x, edge_index, leaves.get("edge_attr"))
        results = {"out": out} if alpha is None else {"out": out, "alpha": alpha}
        loss = sum(((t * normal(*t.shape)).sum() for t in results.values()), torch.zeros(()))
        leaves |= dict(layer.named_parameters())
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            found = torch.zeros_like(leaf) if gradient is None else gradient
            results[f"gradient of {name}"] = found
        return {name: t.detach() for name, t in results.items()}

    def _call(
        self, package: str, layer: nn.Module, x: Any, edge_index: Tensor, edge_attr: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if PEERS[self.package] == "dgl.nn":
            return layer(self._dgl_graph(edge_index.long()), x, get_attention=True)  # type: ignore[no-any-return]
        edges: Any = edge_index
        if package == PEERS[self.package]:
            edges = edge_index.long()  # torch differentiates a selection by int32 ids wrongly
        elif self.given_graph:
            edges = self.edges.graph()
        rest = () if edge_attr is None else (edge_attr,)
        if self.given_graph:
            return layer(x, edges, *rest), None
        out, (_, alpha) = layer(x, edges, *rest, return_attention_weights=True)
        return out, alpha

    def _dgl_graph(self, edge_index: Tensor) -> Any:
        dgl = importlib.import_module("dgl")
        ends = (edge_index[0], edge_index[1])
        if not self.bipartite:
            return dgl.graph(ends, num_nodes=self.edges.num_dst)
        counts = {"u": self.edges.num_src, "v": self.edges.num_dst}
        return dgl.heterograph({("u", "to", "v"): ends}, num_nodes_dict=counts)
