"""What cases are drawn, and how often each kind."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch.distributed as dist

from gatkernels.fuzz.arguments import OPTION_FAULTS, TENSOR_FAULTS, ArgumentCase
from gatkernels.fuzz.draws import Draws
from gatkernels.fuzz.edges import KINDS, EdgeSpec
from gatkernels.fuzz.layers import PEERS, LayerCase
from gatkernels.fuzz.operators import LAYOUTS, OPERATORS, OperatorCase
from gatkernels.fuzz.sharded import RANKS, ShardedCase
from gatkernels.ops.checks import DTYPE_CODES
from gatkernels.testing import INPUTS

DTYPES = [str(dtype).removeprefix("torch.") for dtype in DTYPE_CODES]
SEEDS = 2**31
#: Around what kernels change course at: vectors, tiles, slots of heads.
HEADS = [*range(1, 10), 12, 15, 16, 17, 33]
CHANNELS = [*range(1, 11), 0, 15, 16, 17, 31, 32, 33, 40, 64, 65, 121]
SLOPES = [0.2, 0.0, 1.0, 0.01, -0.3, 2.5]
#: Most cases are small; some have hubs of several blocks, or of several chunks.
COUNTS = [*range(121), 700, 2049, 5000]
#: Of a hundred cases, how many are of each kind; operators make up the rest.
SHARES = {"arguments": 15, "layers": 20, "sharded": 1}

Kind = Callable[[Draws], Any]


def edges(draw: Draws, square: bool = False, counts: Sequence[int] = COUNTS) -> EdgeSpec:
    num_src = draw.between(0, 24)
    return EdgeSpec(
        kind=draw.one_of(KINDS),
        num_src=num_src,
        num_dst=num_src if square else draw.between(0, 24),
        num_edges=draw.one_of(counts),
        self_loops=draw.yes(),
        index_dtype=draw.one_of(["int64", "int32"]),
        seed=draw.below(SEEDS),
    )


def operators(draw: Draws, backend: str, device: str, small: bool = False) -> OperatorCase:
    operator = draw.one_of(list(OPERATORS))
    spec = edges(draw, counts=range(41) if small else COUNTS)
    heads, channels = draw.one_of(HEADS), draw.one_of(CHANNELS)
    if spec.num_edges > 120:  # the formula's [edges, heads, channels] stay small
        heads, channels = min(heads, 4), min(channels, 16)
    with_edge = draw.yes()
    names = INPUTS[operator] if with_edge else INPUTS[operator][:3]
    return OperatorCase(
        operator=operator,
        edges=spec,
        heads=heads,
        channels=channels,
        value_channels=draw.between(0, 20) if draw.yes() else channels,
        features=draw.between(1, 18),
        dtype=draw.one_of(DTYPES),
        size=draw.one_of([1.0, 0.1, 3.0]),
        number=draw.one_of([None, 0.3, 1.0, -0.5] if operator == "dot" else SLOPES),
        dropout=draw.one_of([0.0, 0.0, 0.0, 0.0, 0.1, 0.5, 0.9, 1.0]),
        with_edge=with_edge,
        attention=draw.yes(),
        layout=draw.one_of(LAYOUTS),
        grad_layout=draw.one_of(LAYOUTS),
        frozen=tuple(name for name in names if draw.below(5) == 4),
        batch=0 if small else draw.one_of([0, 0, 0, 0, 1, 2]),
        threads=draw.one_of([1, 1, 1, 2, 3]),
        seed=draw.below(SEEDS),
        backend=backend,
        device=device,
    )


def arguments(draw: Draws, backend: str, device: str) -> ArgumentCase:
    case = operators(draw, backend, device, small=True)
    if draw.below(3) < 2:
        return ArgumentCase(case, (draw.one_of(case.names()), draw.one_of(list(TENSOR_FAULTS))))
    places = [(name, k) for name, values in OPTION_FAULTS.items() for k in range(len(values))]
    return ArgumentCase(case, draw.one_of(places))


def sharded(draw: Draws, backend: str, device: str) -> ShardedCase:
    case = operators(draw, backend, device, small=True)
    edges = replace(case.edges, num_dst=case.edges.num_src)
    case = replace(case, edges=edges, layout="contiguous", grad_layout="contiguous", threads=1)
    return ShardedCase(
        case=case,
        ranks=draw.between(2, RANKS),
        exchange=draw.one_of(["halo", "heads"]),
        scattered=draw.yes(),
    )


YES_NO = [False, True]
#: Options of layers that both have, beyond their sizes.
OPTIONS: dict[str, dict[str, Sequence[Any]]] = {
    "GATConv": {
        "concat": YES_NO,
        "negative_slope": SLOPES,
        "add_self_loops": YES_NO,
        "bias": YES_NO,
        "residual": YES_NO,
    },
    "TransformerConv": {
        "concat": YES_NO,
        "beta": YES_NO,
        "bias": YES_NO,
        "root_weight": YES_NO,
        "edge_dim": [None, 1, 3, 40],
    },
}
OPTIONS["GATv2Conv"] = {**OPTIONS["GATConv"], "share_weights": YES_NO}
OF_EDGES: dict[str, Sequence[Any]] = {
    "edge_dim": [None, 1, 3, 9],
    "fill_value": ["mean", "add", "max", "min", 0.5],
}
OF_DGL: dict[str, dict[str, Sequence[Any]]] = {
    "GATConv": {"negative_slope": SLOPES, "residual": YES_NO, "bias": YES_NO},
    "GATv2Conv": {"negative_slope": SLOPES, "residual": YES_NO, "bias": YES_NO},
}


def layers(draw: Draws, packages: Sequence[str]) -> LayerCase:
    package = draw.one_of(packages)
    options = OF_DGL if package == "gatkernels.dgl" else OPTIONS
    layer = draw.one_of(sorted(options))
    chosen = dict(options[layer])
    if package == "gatkernels.pyg" and layer != "TransformerConv":
        chosen |= OF_EDGES
    bipartite = draw.yes()
    given_graph = package == "gatkernels.nn" and draw.yes()
    values = {name: draw.one_of(few) for name, few in chosen.items()}
    if given_graph and "add_self_loops" in values:
        values["add_self_loops"] = False  # a graph has them, or has not
    spec = edges(draw, square=not bipartite, counts=range(101))
    return LayerCase(
        package=package,
        layer=layer,
        edges=EdgeSpec(**{**vars(spec), "self_loops": False}),
        features=draw.between(1, 12),
        channels=draw.between(1, 20),
        heads=draw.between(1, 9),
        options=tuple(sorted(values.items())),
        bipartite=bipartite,
        given_graph=given_graph,
        seed=draw.below(SEEDS),
    )


def kinds(backend: str, device: str) -> dict[str, Kind]:
    """What can be drawn here: layers beside peers that are installed, and graphs of several
    processes, on a CPU alone."""
    found: dict[str, Kind] = {
        "operators": lambda draw: operators(draw, backend, device),
        "arguments": lambda draw: arguments(draw, backend, device),
    }
    if device != "cpu" or backend != "cpu":
        return found
    if dist.is_available() and dist.is_gloo_available():
        found["sharded"] = lambda draw: sharded(draw, backend, device)
    packages = [p for p, peer in PEERS.items() if importlib.util.find_spec(peer.split(".")[0])]
    if packages:
        found["layers"] = lambda draw: layers(draw, packages)
    return found


def name_of(kinds: dict[str, Kind], draw: Draws) -> str:
    """The kind of a case, by its first choice."""
    place = draw.below(100)
    for name, share in SHARES.items():
        if name in kinds:
            if place >= 100 - share:
                return name
            place += share
    return "operators"
