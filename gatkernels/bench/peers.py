"""The layers compared: one small adapter class each.

A new peer is a subclass of `Peer` with one method, under `@register`; or, in a module of one's
own, without the decorator and named on the command line as `--peers package.module:Class`.
"""

from __future__ import annotations

import importlib
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gatkernels import Graph, backends
from gatkernels.bench.cases import Case, Inputs, Spec, tiny_edges

REFERENCE = "reference"


@dataclass(frozen=True)
class Layer:
    """A layer with the case's weights; `parameters` in the order of `case.weights`."""

    call: Callable[[Inputs], Tensor]  # -> [num_dst, H * C]
    parameters: Sequence[Tensor]


class Step:
    """One training step of a layer: `forward()`, then `backward()`, on inputs in rotation.

    With `hold`, every run gets the same inputs, as training on one small graph does.
    """

    def __init__(
        self, layer: Layer, rotation: Sequence[tuple[Inputs, Tensor]], graph_seconds: float = 0.0
    ) -> None:
        self.layer = layer
        self.rotation = rotation
        self.graph_seconds = graph_seconds
        self.hold = False
        self._turn = 0
        self._out: Tensor | None = None

    def forward(self) -> Tensor:
        self._turn = 0 if self.hold else (self._turn + 1) % len(self.rotation)
        self._out = self.layer.call(self.rotation[self._turn][0])
        return self._out

    def backward(self, grad_out: Tensor | None = None) -> tuple[Tensor, ...]:
        """Gradients of the weights; frees what the last `forward` kept."""
        if self._out is None:
            raise RuntimeError("backward() needs a forward() before it")
        out, self._out = self._out, None
        grad = self.rotation[self._turn][1] if grad_out is None else grad_out
        return torch.autograd.grad(out, self.layer.parameters, grad)


class Peer:
    """An implementation of the layer. Subclasses give `name` and `layer`."""

    name: str
    #: Whether the first call on new shapes compiles, so that memory is weighed from the second.
    compiles = False
    cuda_only = False

    def unavailable(self, spec: Spec) -> str | None:
        """Why this peer cannot run the case, or None."""
        return None

    def graph(self, case: Case) -> Any:
        """The graph in this peer's own form, built outside the timed steps."""
        return case.edge_index

    def layer(self, case: Case, graph: Any) -> Layer:
        """The layer with `case.weights`, bound to `graph`."""
        raise TypeError(f"the peer '{self.name}' has no method 'layer'")

    def prepare(self, case: Case) -> Step:
        start = time.perf_counter()
        graph = self.graph(case)
        if case.spec.device != "cpu":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        layer = self.layer(case, graph)
        have = [list(parameter.shape) for parameter in layer.parameters]
        want = {name: list(weight.shape) for name, weight in case.weights.items()}
        if [math.prod(shape) for shape in have] != [math.prod(shape) for shape in want.values()]:
            raise ValueError(
                f"Layer.parameters must be in the order of case.weights, {want}, got shapes {have}"
            )
        return Step(layer, case.rotation, seconds)


PEERS: dict[str, Peer] = {}


def register(cls: type[Peer]) -> type[Peer]:
    """Class decorator: an instance of `cls` becomes a peer under its name."""
    PEERS[cls.name] = cls()
    return cls


def find(name: str) -> Peer:
    """A registered peer, or an instance of `package.module:Class`.

    Raises: KeyError, ImportError, AttributeError or TypeError where there is no such peer.
    """
    if name in PEERS:
        return PEERS[name]
    module, _, cls = name.partition(":")
    if not cls:
        raise KeyError(f"no peer '{name}'; known: {', '.join(PEERS)}, or package.module:Class")
    peer = getattr(importlib.import_module(module), cls)()
    if not isinstance(peer, Peer) or not isinstance(getattr(peer, "name", None), str):
        raise TypeError(f"{name} must be a subclass of gatkernels.bench.peers.Peer with a name")
    return peer


def address(peer: Peer) -> str:
    """A name that `find` understands in another process."""
    if PEERS.get(peer.name) is peer:
        return peer.name
    return f"{type(peer).__module__}:{type(peer).__qualname__}"


def load(parameter: nn.Parameter, value: Tensor) -> nn.Parameter:
    """Copy `value` into a layer's parameter, reshaped, and return the parameter.

    Raises: ValueError where they do not have as many elements.
    """
    if parameter.numel() != value.numel():
        raise ValueError(
            f"a weight of shape {list(value.shape)} does not fit a parameter of shape "
            f"{list(parameter.shape)}"
        )
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


def pyg_layer(classes: dict[str, Any], case: Case, **options: Any) -> tuple[Any, list[Tensor]]:
    """A layer with PyG's arguments and parameter names, and its parameters holding the weights.

    `classes` has the class for each of `cases.LAYERS`.
    """
    layer, weights = case.spec.layer, case.weights
    if layer != "dot":
        options["add_self_loops"] = False
    conv = classes[layer](
        case.in_channels, case.channels, case.heads, bias=layer == "gat", **options
    ).to(case.spec.device, case.dtype)
    if layer == "dot":
        parameters = [getattr(conv, name).weight for name in weights]
    elif layer == "gat":
        # The fused subclass of PyG's layer, and PyG before 2.5, keep one projection as lin_src.
        lin = conv.lin if getattr(conv, "lin", None) is not None else conv.lin_src
        parameters = [lin.weight, conv.att_src, conv.att_dst, conv.bias]
    else:
        parameters = [conv.lin_l.weight, conv.lin_r.weight, conv.att]
    return conv, [load(p, w) for p, w in zip(parameters, weights.values(), strict=True)]


class Ours(Peer):
    """`gatkernels.nn` on one backend."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.name = backend if backend == REFERENCE else f"gatkernels-{backend}"

    def unavailable(self, spec: Spec) -> str | None:
        """What the backend says about one edge with the case's layer, dtype and device."""
        try:
            case = Case(spec, tiny_edges(), 4, 8, 8)
            self.prepare(case).forward()
        except Exception as error:
            return " ".join(str(error).split()) or repr(error)
        return None

    def graph(self, case: Case) -> Any:
        return Graph.from_edge_index(case.edge_index, (case.edges.num_src, case.edges.num_dst))

    def layer(self, case: Case, graph: Any) -> Layer:
        from gatkernels.nn import GATConv, GATv2Conv, TransformerConv

        classes = {"gat": GATConv, "gatv2": GATv2Conv, "dot": TransformerConv}
        conv, parameters = pyg_layer(classes, case, backend=self.backend)
        return Layer(lambda x: conv(x, graph), parameters)


# The naive formulas are the backend "reference".
PEERS.update((peer.name, peer) for peer in map(Ours, backends.BACKENDS))


def our_fastest(names: Sequence[str]) -> str | None:
    """Of the peers in a result, our backend that "auto" would take."""
    ours = [peer.name for peer in PEERS.values() if isinstance(peer, Ours)]
    return next((name for name in ours if name in names), None)
