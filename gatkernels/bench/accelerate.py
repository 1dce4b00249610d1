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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gatkernels
from gatkernels.bench.graphs import GRAPHS
from gatkernels.bench.measure import Timing, in_turns
from gatkernels.bench.results import environment
from gatkernels.testing import assert_same_model

CLASSES, LABELLED = 40, 0.54  # of ogbn-arxiv
WIDTHS = ((16, 8), (16, 8), (CLASSES, 1))  # channels per head, heads
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


def compare(edge_index: Tensor, x: Tensor, rounds: int = 5) -> Result:
    """Time both in interleaved rounds, after checking that they compute the same.

    Raises:
        AssertionError: If their logits differ.
    """
    torch.manual_seed(0)
    model = Network(x.shape[1])
    with torch.no_grad():
        expected = model(x, edge_index)
        report = gatkernels.accelerate(model)
        difference = assert_same_model("accelerate", model(x, edge_index), expected)
    step = training_step(model, x)

    def before() -> Callable[[], None]:
        gatkernels.restore(model)
        return partial(step, edge_index)

    def after(case: str) -> Callable[[], None]:
        gatkernels.accelerate(model)
        return partial(step, edge_index if case == CASES[0] else edge_index.clone())

    turns: dict[str, Callable[[], Callable[[], None]]] = {"before": before}
    turns |= {case: partial(after, case) for case in CASES}
    timings = in_turns(turns, rounds)
    fallbacks = sum(sum(layer.fallbacks.values()) for layer in report.layers)
    return Result(timings.pop("before"), timings, difference, fallbacks)


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
