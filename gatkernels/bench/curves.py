"""Curves: time and memory against the number of edges, time against width and against threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gatkernels.bench.cases import Spec
from gatkernels.bench.peers import Peer
from gatkernels.bench.process import Tick, available_memory
from gatkernels.bench.results import CaseResult, Curve
from gatkernels.bench.run import Settings, run_case

EDGES = (10_000, 100_000, 1_000_000, 10_000_000)
#: What one edge takes while its graph is generated, sorted and held in every form, in bytes.
BYTES_PER_EDGE = 100
WIDTHS = ("1x8", "4x8", "8x16", "8x64")
FIXED = "power-law:500000"
#: A peer whose step takes longer than this many seconds is left out of the next, larger points.
PATIENCE = 0.5


@dataclass(frozen=True)
class Point:
    """One case of a figure, at `x`."""

    figure: str
    x: float
    spec: Spec
    settings: Settings


def points(settings: Settings, device: str = "cpu", cores: int = 1) -> list[Point]:
    """Every point of every figure, the costly ones of each figure last."""
    free = available_memory()
    weightless = replace(settings, memory=False)
    found = [
        Point("edges", count, Spec(f"power-law:{count}", device=device), settings)
        for count in EDGES
        if free is None or count * BYTES_PER_EDGE < free
    ]
    for shape in WIDTHS:
        heads, channels = map(int, shape.split("x"))
        spec = Spec(FIXED, shape, device=device)
        found.append(Point("width", heads * channels, spec, weightless))
    if device == "cpu":
        found += [
            Point("threads", threads, Spec(FIXED), replace(weightless, threads=threads))
            for threads in thread_counts(cores)
        ]
    return found


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4, ... and the number of cores."""
    counts = [1]
    while counts[-1] * 2 < cores:
        counts.append(counts[-1] * 2)
    return counts if cores == 1 else [*counts, cores]


class Curves:
    """Collects the lines of all figures, and who has become too slow or too big for a figure."""

    def __init__(self, peers: Sequence[Peer]) -> None:
        self.peers = peers
        self.lines: dict[tuple[str, str], Curve] = {}
        self._out: set[tuple[str, str]] = set()

    def run(self, point: Point, tick: Tick) -> CaseResult:
        """Measure a point with the peers still in."""
        left = [peer for peer in self.peers if (point.figure, peer.name) not in self._out]
        result = run_case(point.spec, left, point.settings, tick)
        for peer in result.peers:
            step = peer.timings.get("step")
            self._add(point.figure, peer.name, point.x, step.median if step else None, peer.status)
            if point.figure == "edges":
                weight = peer.peak.bytes if peer.peak else None
                self._add("memory", peer.name, point.x, weight, peer.status)
            if step is None or (step.median > PATIENCE and point.figure != "threads"):
                self._out.add((point.figure, peer.name))
        for limit in result.limits:
            median = limit.timings["step"].median
            self._add(point.figure, f"({limit.name})", point.x, median, "ok")
        return result

    def _add(self, figure: str, name: str, x: float, y: float | None, status: str) -> None:
        if status == "skipped":
            return
        line = self.lines.setdefault((figure, name), Curve(figure, name))
        line.x.append(x)
        line.y.append(y)
        line.notes.append("" if status == "ok" else status)

    def __iter__(self) -> Iterator[Curve]:
        return iter(self.lines.values())
