"""Several runs side by side: one picture of their curves, one table of their scores."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatkernels.experiments import plots, runs
from gatkernels.experiments.figures import Picture
from gatkernels.experiments.page import document, figure_html, table_html
from gatkernels.experiments.plots.curves import model_title
from gatkernels.experiments.presets import ATTENTION
from gatkernels.experiments.view import LookError

COLUMNS = ("run", "network", "test", "seeds", "validation", "kept epoch", "ms per epoch")


class Comparison:
    """What ``metrics.json`` of several runs on one data set says, in the order they are named.

    Raises: RunError for a folder without a run, LookError where the runs cannot be compared.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self.metrics = [runs.read_metrics(folder) for folder in folders]
        if len(set(folders)) < len(folders):
            raise LookError("the same run is named twice")
        names = [metrics["dataset"]["title"] for metrics in self.metrics]
        if len(set(names)) > 1:
            raise LookError(
                f"runs are compared on one data set, these are on {', '.join(dict.fromkeys(names))}"
            )

    @property
    def names(self) -> list[str]:
        """The networks' names, with the runs' folders where two are of one kind."""
        titles = [model_title(metrics["config"]["model"]) for metrics in self.metrics]
        if len(set(titles)) == len(titles):
            return titles
        return [f"{title}, {folder}" for title, folder in zip(titles, self.folders, strict=True)]

    def picture(self) -> Picture:
        """The curves of all, and the scores in a sentence."""
        scores = [
            f"{name} {score(metrics)} %"
            for name, metrics in zip(self.names, self.metrics, strict=True)
        ]
        data = self.metrics[0]["dataset"]
        words = f"Test {data['metric']} on {data['title']}: {', '.join(scores)}."
        return Picture(plots.comparison(self.metrics, self.names), words)

    def rows(self) -> list[tuple[str, ...]]:
        """The table's cells as text, under ``COLUMNS``."""
        return [
            (
                str(folder),
                network(metrics["config"]),
                f"{score(metrics)} %",
                str(metrics["summary"]["seeds"]),
                f"{metrics['summary']['val_score_mean']:.2%}".replace("%", " %"),
                epochs(metrics["runs"]),
                f"{metrics['summary']['ms_per_epoch']:.1f}",
            )
            for folder, metrics in zip(self.folders, self.metrics, strict=True)
        ]

    def page(self) -> str:
        """Picture and table on one HTML page that needs no other file."""
        data, picture = self.metrics[0]["dataset"], self.picture()
        name = f"{len(self.folders)} runs on {data['title']}"
        notes = (
            f"Test {data['metric']} and its standard deviation over the seeds, of the weights best "
            "on the validation nodes. Lines: the seed whose weights were kept, the others faintly."
        )
        body = [
            f"<h1>{html.escape(name)}</h1>",
            f'<p class="says">{html.escape(picture.words)}</p>',
            table_html(COLUMNS, self.rows()),
            f"<p>{html.escape(notes)}</p>",
            figure_html(picture, "Validation curves"),
        ]
        return document(name, "\n".join(body))


def score(metrics: dict[str, Any]) -> str:
    """Mean over the seeds in per cent, with the standard deviation where there are several."""
    mean, std = (metrics["summary"][f"test_score_{name}"] for name in ("mean", "std"))
    return f"{100 * mean:.2f}" if std is None else f"{100 * mean:.2f} ± {100 * std:.2f}"


def network(config: dict[str, Any]) -> str:
    """A network's kind and size: GAT, 3 layers of 4 x 256."""
    heads = f"{config['heads']} x " if config["model"] in ATTENTION else ""
    kind = model_title(config["model"])
    return f"{kind}, {config['layers']} layers of {heads}{config['hidden']}"


def epochs(entries: Sequence[dict[str, Any]]) -> str:
    """Which epochs were kept, of all the seeds."""
    kept = [entry["best_epoch"] for entry in entries]
    return str(kept[0]) if min(kept) == max(kept) else f"{min(kept)} to {max(kept)}"
