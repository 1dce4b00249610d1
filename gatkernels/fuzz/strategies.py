"""What cases are drawn, with hypothesis, which also shrinks those that fail."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from gatkernels.fuzz.arguments import OPTION_FAULTS, TENSOR_FAULTS, ArgumentCase
from gatkernels.fuzz.edges import KINDS, EdgeSpec
from gatkernels.fuzz.layers import PEERS, LayerCase
from gatkernels.fuzz.operators import LAYOUTS, OPERATORS, OperatorCase
from gatkernels.ops.checks import DTYPE_CODES
from gatkernels.testing import INPUTS

DTYPES = [str(dtype).removeprefix("torch.") for dtype in DTYPE_CODES]
SEEDS = st.integers(0, 2**31)
#: Around what kernels change course at: vectors, tiles, slots of heads.
HEADS = st.sampled_from([*range(1, 10), 12, 15, 16, 17, 33])
CHANNELS = st.sampled_from([*range(1, 11), 0, 15, 16, 17, 31, 32, 33, 40, 64, 65, 121])
SLOPES = st.sampled_from([0.2, 0.0, 1.0, 0.01, -0.3, 2.5])
#: Most cases are small; some have hubs of several blocks, or of several chunks.
COUNTS = st.sampled_from([*range(121), 700, 2049, 5000])


@st.composite
def edges(
    draw: st.DrawFn, square: bool = False, counts: st.SearchStrategy[int] = COUNTS
) -> EdgeSpec:
    num_src = draw(st.integers(0, 24))
    return EdgeSpec(
        kind=draw(st.sampled_from(KINDS)),
        num_src=num_src,
        num_dst=num_src if square else draw(st.integers(0, 24)),
        num_edges=draw(counts),
        self_loops=draw(st.booleans()),
        index_dtype=draw(st.sampled_from(["int64", "int32"])),
        seed=draw(SEEDS),
    )


@st.composite
def operators(draw: st.DrawFn, backend: str, device: str, small: bool = False) -> OperatorCase:
    operator = draw(st.sampled_from(list(OPERATORS)))
    spec = draw(edges(counts=st.integers(0, 40) if small else COUNTS))
    heads, channels = draw(HEADS), draw(CHANNELS)
    if spec.num_edges > 120:  # the formula's [edges, heads, channels] stay small
        heads, channels = min(heads, 4), min(channels, 16)
    with_edge = draw(st.booleans())
    names = INPUTS[operator] if with_edge else INPUTS[operator][:3]
    number = SLOPES if operator != "dot" else st.sampled_from([None, 0.3, 1.0, -0.5])
    return OperatorCase(
        operator=operator,
        edges=spec,
        heads=heads,
        channels=channels,
        value_channels=draw(st.one_of(st.just(channels), st.integers(0, 20))),
        features=draw(st.integers(1, 18)),
        dtype=draw(st.sampled_from(DTYPES)),
        size=draw(st.sampled_from([1.0, 0.1, 3.0])),
        number=draw(number),
        dropout=draw(st.sampled_from([0.0, 0.0, 0.1, 0.5, 0.9, 1.0])),
        with_edge=with_edge,
        attention=draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
        grad_layout=draw(st.sampled_from(LAYOUTS)),
        frozen=tuple(name for name in names if draw(st.integers(0, 4)) == 4),
        batch=0 if small else draw(st.sampled_from([0, 0, 0, 0, 1, 2])),
        threads=draw(st.integers(1, 3)),
        seed=draw(SEEDS),
        backend=backend,
        device=device,
    )


@st.composite
def arguments(draw: st.DrawFn, backend: str, device: str) -> ArgumentCase:
    case = draw(operators(backend, device, small=True))
    of_tensor = st.tuples(st.sampled_from(case.names()), st.sampled_from(list(TENSOR_FAULTS)))
    of_option = st.sampled_from([(n, k) for n, v in OPTION_FAULTS.items() for k in range(len(v))])
    return ArgumentCase(case, draw(st.one_of(of_tensor, of_tensor, of_option)))


#: Options of layers that both have, beyond their sizes.
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "GATConv": {
        "concat": st.booleans(),
        "negative_slope": SLOPES,
        "add_self_loops": st.booleans(),
        "bias": st.booleans(),
        "residual": st.booleans(),
    },
    "TransformerConv": {
        "concat": st.booleans(),
        "beta": st.booleans(),
        "bias": st.booleans(),
        "root_weight": st.booleans(),
        "edge_dim": st.sampled_from([None, 1, 3, 40]),
    },
}
OPTIONS["GATv2Conv"] = {**OPTIONS["GATConv"], "share_weights": st.booleans()}
OF_EDGES = {
    "edge_dim": st.sampled_from([None, 1, 3, 9]),
    "fill_value": st.sampled_from(["mean", "add", "max", "min", 0.5]),
}
OF_DGL = {
    "GATConv": {"negative_slope": SLOPES, "residual": st.booleans(), "bias": st.booleans()},
    "GATv2Conv": {"negative_slope": SLOPES, "residual": st.booleans(), "bias": st.booleans()},
}


@st.composite
def layers(draw: st.DrawFn, packages: Sequence[str]) -> LayerCase:
    package = draw(st.sampled_from(packages))
    options = OF_DGL if package == "gatkernels.dgl" else OPTIONS
    layer = draw(st.sampled_from(sorted(options)))
    chosen = {**options[layer]}
    if package == "gatkernels.pyg" and layer != "TransformerConv":
        chosen |= OF_EDGES
    bipartite = draw(st.booleans())
    given_graph = package == "gatkernels.nn" and draw(st.booleans())
    values = {name: draw(strategy) for name, strategy in chosen.items()}
    if given_graph and "add_self_loops" in values:
        values["add_self_loops"] = False  # a graph has them, or has not
    spec = draw(edges(square=not bipartite, counts=st.integers(0, 100)))
    return LayerCase(
        package=package,
        layer=layer,
        edges=EdgeSpec(**{**vars(spec), "self_loops": False}),
        features=draw(st.integers(1, 12)),
        channels=draw(st.integers(1, 20)),
        heads=draw(st.integers(1, 9)),
        options=tuple(sorted(values.items())),
        bipartite=bipartite,
        given_graph=given_graph,
        seed=draw(SEEDS),
    )


def kinds(backend: str, device: str) -> dict[str, Callable[[], st.SearchStrategy[Any]]]:
    """What can be drawn here: layers only beside peers that are installed, and on a CPU."""
    found: dict[str, Callable[[], st.SearchStrategy[Any]]] = {
        "operators": lambda: operators(backend, device),
        "arguments": lambda: arguments(backend, device),
    }
    packages = [p for p, peer in PEERS.items() if importlib.util.find_spec(peer.split(".")[0])]
    if packages and device == "cpu" and backend == "cpu":
        found["layers"] = lambda: layers(packages)
    return found
