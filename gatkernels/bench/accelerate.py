"""What ``accelerate`` does to a PyG model: one training step before and after.

Run as ``python -m gatkernels.bench.accelerate [--scale S] [--rounds N] [--json FILE]``. The model
is three ``GATConv`` layers on the "arxiv" twin; a step is forward, loss, backward and Adam. Both
are timed on one model, swapped and restored in turn; after the swap with an ``edge_index`` seen
before, as in full-batch training, and with a new one, so that building the graph is included.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gatkernels
from gatkernels.bench.graphs import GRAPHS
from gatkernels.bench.measure import Timing, no_collection
from gatkernels.bench.results import environment

CLASSES, LABELLED = 40, 0.54  # of ogbn-arxiv
WIDTHS = ((16, 8), (16, 8), (CLASSES, 1))  # channels per head, heads
TOLERANCE = 1e-3
#: How much faster a step is to be, in the worse of the two cases.
TARGET = 6.0
CASES = ("edge_index seen before", "new edge_index in every step")


class Network(nn.Module):
    """Three of PyG's GATConv, ELU between them."""

    def __init__(self, in_channels: int) -> None:
        from torch_geometric.nn import GATConv

        super().__init__()
        self.convs = nn.ModuleList()
        for channels, heads in WIDTHS:
            self.convs.append(GATConv(in_channels, channels, heads))
            in_channels = channels * heads

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for place, conv in enumerate(self.convs):
            x = conv(x if place == 0 else F.elu(x), edge_index)
        return x


@dataclass(frozen=True)
class Result:
    """Seconds per training step before, and after by case; the largest difference of the logits."""

    before: Timing
    after: dict[str, Timing]
    logit_difference: float
    fallbacks: int

    def ratio(self, case: str) -> float:
        return self.before.median / self.after[case].median

    @property
    def reached(self) -> bool:
        return all(self.ratio(case) >= TARGET for case in CASES)


def training_step(model: nn.Module, x: Tensor) -> Callable[[Tensor], None]:
    """A step on every labelled node, from an ``edge_index``."""
    generator = torch.Generator().manual_seed(0)
    labelled = torch.rand(x.shape[0], generator=generator) < LABELLED
    labels = torch.randint(CLASSES, (x.shape[0],), generator=generator)[labelled]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)

    def step(edge_index: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x, edge_index)[labelled], labels).backward()
        optimizer.step()

    return step


def seconds(step: Callable[[Tensor], None], edge_index: Tensor) -> float:
    with no_collection():
        start = time.perf_counter()
        step(edge_index)
        return time.perf_counter() - start


def compare(edge_index: Tensor, x: Tensor, rounds: int = 5) -> Result:
    """Time both in interleaved rounds, after checking that they compute the same.

    Raises:
        RuntimeError: If the logits differ by more than ``TOLERANCE``.
    """
    torch.manual_seed(0)
    model = Network(x.shape[1])
    with torch.no_grad():
        expected = model(x, edge_index)
        report = gatkernels.accelerate(model)
        difference = float((model(x, edge_index) - expected).abs().max())
    if not difference < TOLERANCE:
        raise RuntimeError(f"the logits differ by {difference:.1e} after accelerate")
    step = training_step(model, x)
    before: list[float] = []
    after: dict[str, list[float]] = {case: [] for case in CASES}
    for _ in range(rounds + 1):
        gatkernels.restore(model)
        before.append(seconds(step, edge_index))
        gatkernels.accelerate(model)
        for case, edges in zip(CASES, (edge_index, edge_index.clone()), strict=True):
            after[case].append(seconds(step, edges))
    fallbacks = sum(sum(layer.fallbacks.values()) for layer in report.layers)
    timings = {case: Timing.of(found[1:]) for case, found in after.items()}  # the first warms up
    return Result(Timing.of(before[1:]), timings, difference, fallbacks)


def describe(result: Result) -> list[str]:
    lines = ["seconds per training step   before    after   ratio"]
    for case in CASES:
        before, after = result.before.median, result.after[case].median
        lines.append(f"{case:29}{before:5.2f}  {after:7.3f}  {result.ratio(case):5.1f}x")
    verdict = "reached" if result.reached else "missed"
    lines.append(f"at least {TARGET:g}x: {verdict}; logits differ by {result.logit_difference:.1e}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parse = argparse.ArgumentParser(prog="python -m gatkernels.bench.accelerate")
    parse.add_argument("--rounds", type=int, default=5)
    parse.add_argument("--scale", type=float, default=0.5, help="of the graph's nodes and edges")
    parse.add_argument("--json", type=Path, help="also write the result there")
    options = parse.parse_args(arguments)
    try:
        import torch_geometric.nn  # noqa: F401
    except ImportError:
        print("gatkernels.bench.accelerate: needs torch-geometric", file=sys.stderr)
        return 2
    spec = GRAPHS["arxiv"]
    graph = spec.load(options.scale)
    x = torch.randn(graph.num_src, spec.in_channels, generator=torch.Generator().manual_seed(0))
    result = compare(graph.edge_index, x, options.rounds)
    size = {"nodes": graph.num_src, "edges": graph.edge_index.shape[1]}
    print(f"3 GATConv of PyG, 128 -> 8x16 -> 8x16 -> 1x{CLASSES}, on a graph {graph.note}:")
    print("{nodes:,} nodes, {edges:,} edges,".format(**size), torch.get_num_threads(), "threads")
    print("\n".join(describe(result)))
    if options.json is not None:
        settings = {"graph": "arxiv", "scale": options.scale, **size}
        ratios = {case: round(result.ratio(case), 2) for case in CASES}
        content: dict[str, Any] = {"environment": environment(), "settings": settings}
        content |= asdict(result) | {"ratios": ratios}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
