"""What a run leaves behind: files in its folder, and lines and a table on the terminal."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gatkernels.experiments import plots, require
from gatkernels.experiments.datasets import Dataset
from gatkernels.experiments.presets import Preset
from gatkernels.experiments.training import RunResult

REDRAW_SECONDS = 0.1


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("gatkernels", "numpy", "torch-geometric"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            if package == "gatkernels":
                from gatkernels import __version__

                found[package] = __version__
    return found


def summarise(results: Sequence[RunResult]) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds."""
    accuracies = [result.test_accuracy for result in results]
    return {
        "seeds": len(results),
        "test_accuracy_mean": statistics.mean(accuracies),
        "test_accuracy_std": statistics.stdev(accuracies) if len(results) > 1 else None,
        "ms_per_epoch": statistics.median(result.ms_per_epoch for result in results),
    }


def best_run(results: Sequence[RunResult]) -> RunResult:
    """The run to keep, by validation accuracy: the test nodes must not choose."""
    return max(results, key=lambda result: result.val_accuracy)


def build_metrics(
    preset: Preset, dataset: Dataset, results: Sequence[RunResult], settings: dict[str, Any]
) -> dict[str, Any]:
    """The contents of ``metrics.json``: settings, versions, data, summary, and every run."""
    return {
        "config": preset.to_dict(),
        "settings": {**settings, "threads": torch.get_num_threads()},
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "dataset": dataset.summary(),
        "summary": summarise(results),
        "checkpoint_seed": best_run(results).seed,
        "runs": [
            {
                "seed": run.seed,
                "test_accuracy": run.test_accuracy,
                "test_loss": _plain(run.test_loss),
                "val_accuracy": run.val_accuracy,
                "best_epoch": run.best_epoch,
                "epochs": run.epochs,
                "stop": run.stop,
                "seconds": round(run.seconds, 3),
                "ms_per_epoch": round(run.ms_per_epoch, 4),
                "curves": {
                    name: [_plain(value) for value in curve] for name, curve in run.curves.items()
                },
            }
            for run in results
        ],
    }


def _plain(value: float) -> float | None:
    """Six digits; None where JSON has no number for it."""
    return round(value, 6) if math.isfinite(value) else None


def save(
    folder: Path,
    preset: Preset,
    dataset: Dataset,
    results: Sequence[RunResult],
    settings: dict[str, Any],
) -> list[Path]:
    """Write ``checkpoint.pt``, ``metrics.json`` and ``curves.png``; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = build_metrics(preset, dataset, results, settings)
    kept = best_run(results)
    checkpoint = {
        "config": preset.to_dict(),
        "in_channels": dataset.num_features,
        "out_channels": dataset.num_classes,
        "seed": kept.seed,
        "epoch": kept.best_epoch,
        "test_accuracy": kept.test_accuracy,
        "state_dict": kept.state,
    }
    text = json.dumps(metrics, indent=1, allow_nan=False) + "\n"
    return [
        _replace(folder / "checkpoint.pt", lambda path: torch.save(checkpoint, path)),
        _replace(folder / "metrics.json", lambda path: path.write_text(text)),
        _replace(folder / "curves.png", lambda path: plots.curves(metrics, path)),
    ]


def _replace(path: Path, write: Callable[[Path], object]) -> Path:
    """Write beside ``path`` and rename, so that a reader never meets half a file."""
    part = path.with_name(f".part-{path.name}")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


class EpochBar:
    """A progress bar over the epochs of one run, redrawn ten times a second at most.

    Its end is where early stopping would end the run if nothing improved any more.
    """

    def __init__(self, preset: Preset, seed: int, console: Any) -> None:
        progress = require("rich.progress", "rich")
        self._preset = preset
        self._progress = progress.Progress(
            progress.TextColumn(f"seed {seed}"),
            progress.BarColumn(bar_width=24),
            progress.TextColumn(
                "epoch {task.completed:.0f}  loss {task.fields[loss]:.3f}  "
                "val {task.fields[accuracy]:.1%}"
            ),
            progress.TimeElapsedColumn(),
            console=console,
            auto_refresh=False,
        )
        self._task = self._progress.add_task("", total=preset.patience, loss=math.nan, accuracy=0.0)
        self._last: tuple[int, float, float, int] | None = None
        self._drawn = 0.0

    def __enter__(self) -> EpochBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._last is not None:
            self._draw(*self._last)
        self._progress.stop()

    def __call__(self, epoch: int, loss: float, accuracy: float, waited: int) -> None:
        self._last = (epoch, loss, accuracy, waited)
        now = time.monotonic()
        if now - self._drawn >= REDRAW_SECONDS:
            self._drawn = now
            self._draw(epoch, loss, accuracy, waited)

    def _draw(self, epoch: int, loss: float, accuracy: float, waited: int) -> None:
        end = min(self._preset.epochs, epoch - waited + self._preset.patience)
        self._progress.update(self._task, completed=epoch, total=end, loss=loss, accuracy=accuracy)
        self._progress.refresh()


def print_results(console: Any, results: Sequence[RunResult]) -> None:
    """One line for one run, a table with mean and standard deviation for several."""
    summary = summarise(results)
    if len(results) == 1:
        run = results[0]
        console.print(
            f"test accuracy {run.test_accuracy:.1%} (epoch {run.best_epoch} of {run.epochs}, "
            f"validation {run.val_accuracy:.1%}), {run.ms_per_epoch:.2f} ms per epoch"
        )
        return
    table = require("rich.table", "rich").Table()
    for column in ("seed", "test accuracy", "validation", "best epoch", "epochs", "ms per epoch"):
        table.add_column(column, justify="right")
    for run in results:
        table.add_row(
            str(run.seed),
            f"{run.test_accuracy:.1%}",
            f"{run.val_accuracy:.1%}",
            str(run.best_epoch),
            str(run.epochs),
            f"{run.ms_per_epoch:.2f}",
        )
    console.print(table)
    mean, std = summary["test_accuracy_mean"], summary["test_accuracy_std"]
    console.print(
        f"test accuracy {100 * mean:.2f} ± {100 * std:.2f} % over {len(results)} seeds, "
        f"{summary['ms_per_epoch']:.2f} ms per epoch (median)"
    )
