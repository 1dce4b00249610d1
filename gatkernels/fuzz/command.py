"""What the terminal shows of ``gatkernels fuzz``."""

from __future__ import annotations

from typing import NamedTuple

import torch

from gatkernels import backends
from gatkernels.extras import require
from gatkernels.ops import checks

DEFAULT_CASES = 2000


class Job(NamedTuple):
    """What to check of a backend: so many cases, or for so many minutes, whichever ends first."""

    backend: str
    device: str
    cases: int | None
    minutes: float | None
    seed: int
    jobs: int

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
        total = sum(outcome.counts.values())
        kinds = ", ".join(f"{count:,} {name}" for name, count in outcome.counts.items())
        per_thousand = 1000 * outcome.seconds / max(total, 1)
        print(f"seed {self.seed}: {kinds}; {per_thousand:.1f} s per thousand")
        if outcome.failure is None:
            print(f"all {total:,} cases passed")
            return 0
        print(f"a case failed: {outcome.failure.message}")
        print(f"repeat it with\n\n{run.program(outcome.failure.case)}")
        return 1


def prepare(
    backend: str, device: str, cases: int | None, minutes: float | None, seed: int, jobs: int
) -> Job:
    """Raises: ValueError, BackendUnavailable, MissingExtraError, about what was asked for."""
    require("rich", "rich", "fuzz")
    for name, value in (("--cases", cases), ("--minutes", minutes), ("--jobs", jobs)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    if cases is None and minutes is None:
        cases = DEFAULT_CASES
    usable = checks.usable_device(device)
    chosen = backends.select("--backend", backend, backends.Case(usable, torch.float32))
    return Job(chosen, device, cases, minutes, seed, jobs)
