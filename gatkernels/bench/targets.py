"""The stated speed targets as data, and the ratios that a run found for them.

They are stated for one Hopper GPU. Nearly all are ratios within one process, so that they hold for
an H100 as for an H200, whose memory differs; results of the two are kept apart all the same. On
another device the same ratios are measured and shown beside the bounds, but say nothing about
whether these are met.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gatkernels.bench.cases import Spec
from gatkernels.bench.results import Report

#: The devices the bounds are for, as their names have it.
DEVICE = "Hopper GPU"
CARDS = ("H100", "H200")
#: A copy bandwidth below the run's best by more than this says that something else was going on.
OFF = 0.03
#: Graphs by what is measured on them.
LARGE = ("reddit", "products", "proteins")
PEER_GRAPHS = ("arxiv", "reddit", "products")
GRAPHS = (*LARGE, "arxiv", "cora", "hub")


def _wide(graphs: Sequence[str], *layers: str, dtype: str = "float32") -> tuple[Spec, ...]:
    return tuple(Spec(graph, "4x64", layer, dtype) for layer in layers for graph in graphs)


def _narrow(graphs: Sequence[str], *layers: str) -> tuple[Spec, ...]:
    return tuple(Spec(graph, "8x8", layer) for layer in layers for graph in graphs)


_BOTH = ("gat", "gatv2")
_LARGE_CASES = (
    *_wide(LARGE, *_BOTH),
    *_wide(LARGE, *_BOTH, dtype="bfloat16"),
    *_narrow(LARGE, *_BOTH),
)
_ARXIV_CASES = (*_wide(["arxiv"], *_BOTH), *_wide(["arxiv"], *_BOTH, dtype="bfloat16"))
_DOT_CASES = (
    *_wide(LARGE, "dot"),
    *_wide(LARGE, "dot", dtype="bfloat16"),
    *_narrow(LARGE, "dot"),
)
_CORA = _narrow(["cora"], "gat")


@dataclass(frozen=True)
class Target:
    """A bound on one figure of our backend over another figure, or on seconds.

    The other figure is that of `other` in the same case (its own where there is no `other`), under
    the name `base`, in `base_dtype` where that is set.
    """

    name: str
    backend: str
    what: str
    bound: float
    kind: str
    specs: tuple[Spec, ...]
    figures: tuple[str, ...] = ("step",)
    other: str = ""
    base: str = "{}"  # of the same name as the figure
    base_dtype: str = ""
    at_least: bool = False  # the other figure over ours, which is to reach the bound
    unit: str = "x"  # or "us": no other figure


_FLOOR, _PHASES = "floor {}", ("forward", "backward")
_LAYER = _wide(PEER_GRAPHS, "gat")
TARGETS = (
    Target("cuda-floor", "cuda", "GAT and GATv2 operators over the gather floor, each phase", 1.25,
           "operator", _LARGE_CASES, _PHASES, base=_FLOOR),
    Target("cuda-floor-arxiv", "cuda", "the same on arxiv, whose rows caches partly hold", 1.0,
           "operator", _ARXIV_CASES, _PHASES, base=_FLOOR),
    Target("triton-floor", "triton", "GAT operator over the gather floor, each phase", 1.5,
           "operator", _wide(LARGE[:2], "gat"), _PHASES, base=_FLOOR),
    Target("triton-floor-gatv2", "triton", "GATv2 operator over the gather floor, both phases", 2.0,
           "operator", _wide(LARGE[:2], "gatv2"), base=_FLOOR),
    Target("cuda-floor-dot", "cuda", "dot-product operator over the gather floor, each phase", 1.25,
           "operator", _DOT_CASES, _PHASES, base=_FLOOR),
    Target("triton-floor-dot", "triton", "dot-product operator over the floor, both phases", 2.0,
           "operator", _wide(LARGE[:2], "dot"), base=_FLOOR),
    Target("triton-bfloat16", "triton", "GAT operator, bfloat16 against float32", 1.7,
           "operator", _wide(LARGE[:2], "gat", dtype="bfloat16"), base_dtype="float32",
           at_least=True),
    Target("cuda-triton", "cuda", "all these operators against our Triton backend", 1.0,
           "operator", (*_LARGE_CASES, *_ARXIV_CASES), other="triton", at_least=True),
    Target("cuda-small", "cuda", "GAT layer of Cora's size in a CUDA graph", 60e-6,
           "small", _CORA, ("replay",), unit="us"),
    Target("cuda-small-host", "cuda", "GAT layer of Cora's size, time of the host", 300e-6,
           "small", _CORA, ("host",), unit="us"),
    Target("triton-small", "triton", "GAT layer of Cora's size by the GPU's clock", 120e-6,
           "small", _CORA, unit="us"),
    Target("triton-small-replay", "triton", "GAT layer of Cora's size in a CUDA graph", 80e-6,
           "small", _CORA, ("replay",), unit="us"),
    Target("cuda-hub", "cuda", "GAT operator: 1 of 2 M edges into one node, over spread", 1.5,
           "hub", _wide(["hub"], "gat"), ("hub",), base="even"),
    Target("triton-pyg-compiled", "triton", "GAT layer against PyG compiled", 3.0,
           "layer compiled", _LAYER, other="pyg-compiled", at_least=True),
    Target("triton-pyg", "triton", "GAT layer against PyG", 10.0,
           "layer", _LAYER, other="pyg", at_least=True),
    Target("triton-memory", "triton", "peak memory of the GAT layer over PyG's", 0.1,
           "layer", _LAYER, ("peak",), other="pyg"),
    Target("cuda-pyg-compiled", "cuda", "GAT and GATv2 layers against PyG compiled", 4.0,
           "layer compiled", (*_LAYER, *_wide(["arxiv"], "gatv2")), other="pyg-compiled",
           at_least=True),
    Target("cuda-dgnn", "cuda", "GAT layer against dgNN", 2.0,
           "layer dgnn", _LAYER, other="dgnn", at_least=True),
    Target("cuda-turbo-gnn", "cuda", "GATv2 layer against turbo-gnn", 1.5,
           "layer turbo-gnn", _wide(PEER_GRAPHS, "gatv2"), other="turbo-gnn", at_least=True),
)  # fmt: skip

KINDS = tuple(dict.fromkeys(target.kind for target in TARGETS))
#: Ours that targets are stated for, and who stands in for them on a CPU.
BACKENDS = ("cuda", "triton", "cpu")


@dataclass(frozen=True)
class Row:
    """One line of a target: `value` is to keep to the bound; None where `reason` says why."""

    target: Target
    spec: Spec
    figure: str
    backend: str  # which stood for the target's: on a CPU it is "cpu"
    status: str = "open"  # ok, open or FAIL
    reason: str = ""
    ours: float | None = None
    base: float | None = None

    @property
    def case(self) -> str:
        phase = f" {self.figure}" if self.figure in _PHASES else ""
        return f"{self.spec.name}{phase}"

    @property
    def value(self) -> float | None:
        if self.ours is None or self.target.unit == "us":
            return self.ours
        if self.base is None:
            return None
        return self.base / self.ours if self.target.at_least else self.ours / self.base

    @property
    def excess(self) -> float | None:
        """The value over the bound, or the bound over the value: met up to 1."""
        value, target = self.value, self.target
        if value is None:
            return None
        return target.bound / value if target.at_least else value / target.bound


def stand_in(backend: str, device: str) -> str:
    """Our backend that is measured where a target names `backend`."""
    return "cpu" if device == "cpu" else backend


def rows(found: Report) -> list[Row]:
    """Every line of every target on the graphs that the run was asked for."""
    measured = {
        (one.kind, one.name, one.graph, one.shape, one.layer, one.dtype): one
        for one in found.targets or []
    }
    graphs = found.settings.get("graphs") or GRAPHS
    device = found.settings.get("device", "cuda")
    off = suspects(found)

    def look(kind: str, name: str, spec: Spec, figure: str) -> tuple[float | None, str, str]:
        """A figure, or None with the status and the reason."""
        one = measured.get((kind, name, spec.graph, spec.shape, spec.layer, spec.dtype))
        if one is None:
            return None, "open", f"{name} was not measured in this run"
        if one.status != "ok":
            reason = "" if one.status == "OOM" else f", {one.reason}"
            return None, one.status, f"{name}: {one.status}{reason}"
        if figure not in one.figures:
            return None, "open", one.missing.get(figure, f"no figure '{figure}' of {name}")
        return one.figures[figure], "ok", ""

    def line(target: Target, spec: Spec, figure: str) -> Row:
        backend = stand_in(target.backend, device)
        row = Row(target, spec, figure, backend)
        ours, status, reason = look(target.kind, backend, spec, figure)
        if ours is None:
            return replace(row, status="FAIL" if status == "FAIL" else "open", reason=reason)
        if target.unit == "us":
            return replace(row, status="ok", ours=ours)
        twin = replace(spec, dtype=target.base_dtype or spec.dtype)
        other = target.other or backend
        base, _, reason = look(target.kind, other, twin, target.base.format(figure))
        if base is None:
            return replace(row, reason=reason)
        if target.base == _FLOOR and (backend, spec.graph, spec.shape) in off:
            lack = off[backend, spec.graph, spec.shape]
            reason = f"copies were {lack:.0%} slower than the run's fastest"
        return replace(row, status="ok", ours=ours, base=base, reason=reason)

    return [
        line(target, spec, figure)
        for target in TARGETS
        for spec in target.specs
        for figure in target.figures
        if spec.graph in graphs
        if target.kind in (found.settings.get("kinds") or KINDS)
        if stand_in(target.backend, device) in (found.settings.get("backends") or BACKENDS)
    ]


def suspects(found: Report) -> dict[tuple[str, str, str], float]:
    """Groups by backend, graph and shape whose copy bandwidth was OFF or more below the best one,
    and by how much."""
    rates = {
        (one.name, one.graph, one.shape): one.figures["bandwidth"]
        for one in found.targets or []
        if "bandwidth" in one.figures
    }
    lacks = {group: 1.0 - rate / max(rates.values()) for group, rate in rates.items()}
    return {group: lack for group, lack in lacks.items() if lack > OFF}


def card(found: Report) -> str | None:
    """Which of CARDS a run was on."""
    device = found.environment.get("device", "")
    return next((name for name in CARDS if name in device), None)


def by_target(found: Sequence[Row]) -> Iterator[tuple[Target, list[Row]]]:
    for target in TARGETS:
        own = [row for row in found if row.target is target]
        if own:
            yield target, own


def worst(found: Sequence[Row]) -> Row | None:
    """The row furthest from its bound on the wrong side, of those with a value."""
    valued = [row for row in found if row.excess is not None]
    return max(valued, key=lambda row: row.excess or 0.0) if valued else None


def applies(found: Report) -> bool:
    """Whether the run was on a device that the bounds are for."""
    return card(found) is not None
