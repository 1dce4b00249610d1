"""The layers compared: one small adapter class each.

A new peer is a subclass of `Peer` with two methods, under `@register`; or, in a module of one's
own, without the decorator and named on the command line as `--peers package.module:Class`.
"""

from __future__ import annotations

import importlib
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatkernels.bench.graphs import Case, Weights

OURS = "gatkernels"


@dataclass(frozen=True)
class Layer:
    """A layer bound to its inputs; `parameters` in the order of `Weights`."""

    call: Callable[[], Tensor]  # -> [N, H * C]
    parameters: tuple[Tensor, Tensor, Tensor, Tensor]


class Step:
    """One training step of a layer: `forward()`, then `backward()`."""

    def __init__(self, layer: Layer, grad_out: Tensor, graph_seconds: float) -> None:
        self.layer = layer
        self.grad_out = grad_out
        self.graph_seconds = graph_seconds
        self.out: Tensor | None = None

    def forward(self) -> Tensor:
        self.out = self.layer.call()
        return self.out

    def backward(self, grad_out: Tensor | None = None) -> Weights:
        """Gradients of the weights; frees what the last `forward` kept."""
        if self.out is None:
            raise RuntimeError("backward() needs a forward() before it")
        out, self.out = self.out, None
        grad = self.grad_out if grad_out is None else grad_out
        return Weights(*torch.autograd.grad(out, self.layer.parameters, grad))


class Peer:
    """An implementation of the GAT layer. Subclasses give `name`, `graph` and `layer`."""

    name: str

    def unavailable(self) -> str | None:
        """Why this peer cannot run here, or None."""
        return None

    def graph(self, case: Case) -> Any:
        """The graph in this peer's own form, built outside the timed steps."""
        return case.edge_index

    def layer(self, case: Case, graph: Any) -> Layer:
        """The layer with `case.weights`, bound to `case.x` and `graph`."""
        raise NotImplementedError

    def prepare(self, case: Case) -> Step:
        start = time.perf_counter()
        graph = self.graph(case)
        seconds = time.perf_counter() - start
        return Step(self.layer(case, graph), case.grad_out, seconds)


PEERS: dict[str, Peer] = {}


def register(cls: type[Peer]) -> type[Peer]:
    PEERS[cls.name] = cls()
    return cls


def find(name: str) -> Peer:
    """A registered peer, or an instance of `package.module:Class`."""
    if name in PEERS:
        return PEERS[name]
    module, _, cls = name.partition(":")
    if not cls:
        raise KeyError(f"no peer '{name}'; known: {', '.join(PEERS)}, or package.module:Class")
    peer: Peer = getattr(importlib.import_module(module), cls)()
    return peer


def address(peer: Peer) -> str:
    """A name that `find` understands in another process."""
    if PEERS.get(peer.name) is peer:
        return peer.name
    return f"{type(peer).__module__}:{type(peer).__qualname__}"


def load(parameter: nn.Parameter, value: Tensor) -> nn.Parameter:
    """Copy `value` into a layer's parameter and return the parameter."""
    with torch.no_grad():
        parameter.copy_(value.view_as(parameter))
    return parameter


def import_failure(module: str) -> str | None:
    """Why `module` cannot be imported, or None. Broken binaries raise more than ImportError."""
    os.environ.setdefault("DGLBACKEND", "pytorch")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:
        return f"cannot import {module}: {str(error).splitlines()[0] if str(error) else error!r}"
    return None


def pyg_parameters(conv: Any, weights: Weights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Load `weights` into a layer that names its parameters as PyG's GATConv does."""
    return (
        load(conv.lin.weight, weights.lin),
        load(conv.att_src, weights.att_src),
        load(conv.att_dst, weights.att_dst),
        load(conv.bias, weights.bias),
    )


def backend_missing(backend: str) -> str | None:
    """Why our own operator cannot run on `backend`, or None."""
    from gatkernels import Graph, gat_attention

    graph = Graph.from_edge_index(torch.zeros(2, 1, dtype=torch.int64), 1)
    one = torch.ones(1, 1)
    try:
        gat_attention(graph, one[None], one, one, backend=backend)
    except Exception as error:
        return str(error).splitlines()[0]
    return None


@register
class Gatkernels(Peer):
    name = OURS

    def unavailable(self) -> str | None:
        return backend_missing("cpu")

    def graph(self, case: Case) -> Any:
        from gatkernels import Graph

        return Graph.from_edge_index(case.edge_index, case.num_nodes)

    def layer(self, case: Case, graph: Any) -> Layer:
        from gatkernels.nn import GATConv

        conv = GATConv(
            case.in_channels, case.channels, case.heads, add_self_loops=False, backend="cpu"
        )
        return Layer(lambda: conv(case.x, graph), pyg_parameters(conv, case.weights))


@register
class Reference(Peer):
    """The naive formulas, which materialise a message per edge."""

    name = "reference"

    def graph(self, case: Case) -> Any:
        from gatkernels import Graph

        return Graph.from_edge_index(case.edge_index, case.num_nodes)

    def layer(self, case: Case, graph: Any) -> Layer:
        from gatkernels import gat_attention

        weights = case.weights
        lin, att_src, att_dst, bias = (
            nn.Parameter(value.clone())
            for value in (weights.lin, weights.att_src, weights.att_dst, weights.bias)
        )

        def call() -> Tensor:
            x = F.linear(case.x, lin).view(-1, case.heads, case.channels)
            scores = (x * att_src).sum(-1), (x * att_dst).sum(-1)
            out: Tensor = gat_attention(graph, x, *scores, backend="reference")
            return out.flatten(1) + bias

        return Layer(call, (lin, att_src, att_dst, bias))


@register
class PyG(Peer):
    name = "pyg"

    def unavailable(self) -> str | None:
        return import_failure("torch_geometric.nn")

    def layer(self, case: Case, graph: Any) -> Layer:
        from torch_geometric.nn import GATConv

        conv = GATConv(case.in_channels, case.channels, case.heads, add_self_loops=False)
        return Layer(lambda: conv(case.x, graph), pyg_parameters(conv, case.weights))


@register
class DGL(Peer):
    name = "dgl"

    def unavailable(self) -> str | None:
        return import_failure("dgl.nn.pytorch")

    def graph(self, case: Case) -> Any:
        import dgl

        graph = dgl.graph((case.edge_index[0], case.edge_index[1]), num_nodes=case.num_nodes)
        graph.create_formats_()
        return graph

    def layer(self, case: Case, graph: Any) -> Layer:
        from dgl.nn.pytorch import GATConv

        conv = GATConv(case.in_channels, case.channels, case.heads, allow_zero_in_degree=True)
        parameters = (
            load(conv.fc.weight, case.weights.lin),
            load(conv.attn_l, case.weights.att_src),
            load(conv.attn_r, case.weights.att_dst),
            load(conv.bias, case.weights.bias),
        )
        return Layer(lambda: conv(graph, case.x).flatten(1), parameters)
