"""What the terminal shows of ``gatkernels fuzz``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from gatkernels import backends
from gatkernels.extras import require
from gatkernels.ops import checks

DEFAULT_CASES = 2000


class Job(NamedTuple):
    """What to check: cases, or minutes (one of them None), of a backend on a device."""

    backend: str
    device: str
    cases: int | None
    minutes: float | None
    seed: int

    def execute(self) -> int:
        """Checks, and says what was found; 1 where a case failed."""
        from gatkernels.fuzz import run

        progress = require("rich.progress", "rich", "fuzz")
        bar = progress.Progress(
            progress.TextColumn(f"{self.backend} on {self.device}"),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.completed:,.0f} cases"),
            progress.TimeElapsedColumn(),
        )
        with bar:
            task = bar.add_task("", total=self.cases)
            outcome = run.run(*self, lambda count: bar.update(task, completed=count))
        return self._say(outcome, bar.console)

    def _say(self, outcome: Any, console: Any) -> int:
        from gatkernels.fuzz import run

        table = require("rich.table", "rich", "fuzz").Table("cases", "number", box=None)
        table.columns[1].justify = "right"
        for name, count in outcome.counts.items():
            table.add_row(name, f"{count:,}")
        console.print(table)
        total = sum(outcome.counts.values())
        console.print(
            f"{1000 * outcome.seconds / max(total, 1):.1f} s per thousand, seed {self.seed}"
        )
        if outcome.failure is None:
            console.print(f"all {total:,} cases passed")
            return 0
        print(f"a case failed: {outcome.failure.message}")
        print(f"repeat it with\n\n{run.program(outcome.failure.case)}")
        return 1


def prepare(backend: str, device: str, cases: int | None, minutes: float | None, seed: int) -> Job:
    """Raises: ValueError, BackendUnavailable, MissingExtraError, about what was asked for."""
    require("hypothesis", "hypothesis", "fuzz")
    require("rich", "rich", "fuzz")
    for name, value in (("--cases", cases), ("--minutes", minutes)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    if cases is None and minutes is None:
        cases = DEFAULT_CASES
    usable = checks.usable_device(device)
    chosen = backends.select("--backend", backend, backends.Case(usable, torch.float32))
    return Job(chosen, device, cases, minutes, seed)
