"""What the terminal shows of a training: a bar while it runs, lines and a table at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from gatkernels.experiments.presets import Preset
from gatkernels.experiments.runs import summarise
from gatkernels.experiments.training import Epoch, RunResult
from gatkernels.extras import require

REDRAW_SECONDS = 0.1


class EpochBar:
    """A progress bar over the epochs of one run, redrawn ten times a second at most.

    Its end is where early stopping would end the run if nothing improved any more.
    """

    def __init__(self, preset: Preset, label: str, console: Any) -> None:
        progress = require("rich.progress", "rich")
        self._preset = preset
        self._progress = progress.Progress(
            progress.TextColumn(label),
            progress.BarColumn(bar_width=24),
            progress.TextColumn(
                "epoch {task.completed:.0f}  loss {task.fields[loss]:.3f}  "
                "val {task.fields[score]:.1%}"
            ),
            progress.TimeElapsedColumn(),
            console=console,
            auto_refresh=False,
        )
        self._task = self._progress.add_task("", total=preset.patience, loss=math.nan, score=0.0)
        self._last: Epoch | None = None
        self._drawn = 0.0

    def __enter__(self) -> EpochBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._last is not None:
            self._draw(self._last)
        self._progress.stop()

    def __call__(self, epoch: Epoch) -> None:
        self._last = epoch
        now = time.monotonic()
        if now - self._drawn >= REDRAW_SECONDS:
            self._drawn = now
            self._draw(epoch)

    def _draw(self, epoch: Epoch) -> None:
        end = min(self._preset.epochs, epoch.number - epoch.waited + self._preset.patience)
        self._progress.update(
            self._task,
            completed=epoch.number,
            total=end,
            loss=epoch.train_loss,
            score=epoch.val_score,
        )
        self._progress.refresh()


def print_results(console: Any, metric: str, results: Sequence[RunResult]) -> None:
    """One line for one run, a table with mean and standard deviation for several."""
    summary = summarise(results)
    if len(results) == 1:
        run = results[0]
        exact = "" if run.test_score_exact is None else f" ({run.test_score_exact:.2%} exact rows)"
        console.print(
            f"test {metric} {run.test_score:.2%}{exact}, epoch {run.best_epoch} of {run.epochs}, "
            f"validation {run.val_score:.2%}, {run.ms_per_epoch:.2f} ms per epoch",
            soft_wrap=True,
        )
        return
    table = require("rich.table", "rich").Table()
    for column in ("seed", f"test {metric}", "validation", "best epoch", "epochs", "ms per epoch"):
        table.add_column(column, justify="right")
    for run in results:
        table.add_row(
            str(run.seed),
            f"{run.test_score:.1%}",
            f"{run.val_score:.1%}",
            str(run.best_epoch),
            str(run.epochs),
            f"{run.ms_per_epoch:.2f}",
        )
    console.print(table)
    mean, std = summary["test_score_mean"], summary["test_score_std"]
    console.print(
        f"test {metric} {100 * mean:.2f} ± {100 * std:.2f} % over {len(results)} seeds, "
        f"{summary['ms_per_epoch']:.2f} ms per epoch (median)",
        soft_wrap=True,
    )
