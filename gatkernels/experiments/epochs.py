"""Time per training epoch beside PyG's layers with dense features, in one loop and one process.

``python -m gatkernels.experiments.epochs`` trains both networks with the preset of each data set,
in turns, and prints the median epoch of each, their ratio, and the test accuracy both reached.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatkernels import disk
from gatkernels.experiments import datasets, runs
from gatkernels.experiments.datasets import Dataset
from gatkernels.experiments.presets import Preset, get_preset
from gatkernels.experiments.training import Training, build_model
from gatkernels.extras import MissingExtraError, require, versions

WARM_UP = 3  # epochs of each network that are not counted


class PyGNetwork(nn.Module):
    """The two layers of :class:`gatkernels.models.GAT` from PyG's convolutions."""

    def __init__(self, preset: Preset, dataset: Dataset, backend: str = "") -> None:
        super().__init__()
        convs = require("torch_geometric.nn", "torch-geometric")
        layer = convs.GATv2Conv if preset.model == "gatv2" else convs.GATConv
        self.p = preset.dropout
        width, classes = preset.hidden * preset.heads, dataset.num_classes
        self.convs = nn.ModuleList(
            [
                layer(dataset.num_features, preset.hidden, preset.heads, dropout=self.p),
                layer(width, classes, preset.out_heads, concat=False, dropout=self.p),
            ]
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        hidden = F.elu(self.convs[0](F.dropout(x, self.p, self.training), edge_index))
        out: Tensor = self.convs[1](F.dropout(hidden, self.p, self.training), edge_index)
        return out


def compare(name: str, model: str, epochs: int, data_dir: Path | None = None) -> dict[str, Any]:
    """Train both networks for ``epochs`` epochs, an epoch of each at a time.

    Raises: RuntimeError where the two do not compute the same from the same weights: no time is
    given for a wrong result.
    """
    preset = get_preset(name, model).with_options(feature_dropout=0.0)  # which PyG has not
    data = datasets.load(name, data_dir)
    dense = replace(data, x=data.x.to_dense())
    difference = logit_difference(preset, data, dense)
    if not difference < 1e-4:
        raise RuntimeError(f"{name}, {model}: the logits of the two networks differ: {difference}")
    contestants = {
        "gatkernels": Training(preset, data),
        "pyg": Training(preset, dense, model=PyGNetwork, graph=lambda edges, nodes: edges),
    }
    for turn in range(epochs + WARM_UP):
        order = list(contestants.values())
        for run in order if turn % 2 else reversed(order):
            run.step()
    entry: dict[str, Any] = {
        "dataset": data.summary(),
        "model": model,
        "epochs": epochs,
        "logit_difference": difference,
    }
    for key, run in contestants.items():
        times = sorted(1e3 * seconds for seconds in run.times[WARM_UP:])
        result = run.result("epochs")
        entry[key] = {
            "median_ms": median(times),
            "quartiles_ms": [times[len(times) // 4], times[3 * len(times) // 4]],
            "val_score": result.val_score,
            "test_score": result.test_score,
        }
    entry["ratio"] = entry["pyg"]["median_ms"] / entry["gatkernels"]["median_ms"]
    return entry


@torch.no_grad()
def logit_difference(preset: Preset, data: Dataset, dense: Dataset) -> float:
    """Largest difference of the two networks' logits, with equal weights, without dropout."""
    ours = build_model(preset, data).eval()
    theirs = PyGNetwork(preset, dense).eval()
    theirs.load_state_dict(ours.state_dict())
    return float((ours(data.x, data.edge_index) - theirs(dense.x, dense.edge_index)).abs().max())


COLUMNS = ("data set", "layer", "gatkernels, ms", "PyG, ms", "ratio", "accuracy: ours", "PyG")


def rows(entries: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            entry["dataset"]["title"],
            entry["model"],
            f"{entry['gatkernels']['median_ms']:.2f}",
            f"{entry['pyg']['median_ms']:.1f}",
            f"{entry['ratio']:.1f}x",
            f"{100 * entry['gatkernels']['test_score']:.1f}",
            f"{100 * entry['pyg']['test_score']:.1f}",
        ]
        for entry in entries
    ]


def markdown(results: dict[str, Any]) -> str:
    table = [list(COLUMNS), ["---", "---", *["---:"] * 5], *rows(results["entries"])]
    lines = ["| " + " | ".join(row) + " |" for row in table]
    text = (
        "A training step and a validation pass of the paper's two-layer network, sparse features "
        "in ours, dense ones in PyG's; epochs of the two in turns, medians. Test accuracy of the "
        f"best validation epoch after as many epochs of each. {results['threads']} threads, "
        f"{results['machine']}, torch {results['versions']['torch']}, PyG "
        f"{results['versions']['torch-geometric']}."
    )
    return "\n".join(["# Time per epoch", "", *lines, "", text, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gatkernels.experiments.epochs")
    parser.add_argument("--datasets", nargs="+", default=["cora", "citeseer", "pubmed"])
    parser.add_argument("--models", nargs="+", default=["gat", "gatv2"], choices=["gat", "gatv2"])
    parser.add_argument("--epochs", type=int, default=50, help="of each network (50)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the raw data files")
    parser.add_argument("--out", type=Path, default=Path("runs/epochs"), metavar="DIR")
    args = parser.parse_args(arguments)
    try:
        runs.check_folder(args.out)
        if args.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {args.epochs}")
        entries = [
            compare(name, model, args.epochs, args.data)
            for name in args.datasets
            for model in args.models
        ]
    except (ValueError, OSError, MissingExtraError) as error:
        parser.exit(2, f"{parser.prog}: error: {' '.join(str(error).split())}\n")
    results = {
        "threads": torch.get_num_threads(),
        "machine": runs.machine(),
        "versions": versions(),
        "entries": entries,
    }
    runs.write_json(args.out / "epochs.json", results)
    text = markdown(results)
    disk.write(args.out / "epochs.md", lambda path: path.write_text(text))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
