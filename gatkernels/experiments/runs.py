"""One ``gatkernels train``: prepare, train once per seed, report and save."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gatkernels import _dispatch
from gatkernels.experiments import datasets, report, require
from gatkernels.experiments.datasets import Dataset
from gatkernels.experiments.presets import Preset
from gatkernels.experiments.training import RunResult, train


@dataclass(frozen=True)
class Job:
    """All that was decided before the first epoch."""

    preset: Preset
    dataset: Dataset
    out: Path
    backend: str
    device: torch.device
    quiet: bool
    console: Any


def prepare(
    preset: Preset,
    data_dir: Path | None,
    out: Path | None,
    backend: str,
    device: str,
    quiet: bool = False,
) -> Job:
    """Check the choices, load the data and name their source.

    Raises: ValueError, OSError, BackendUnavailable or MissingExtraError about the choices.
    """
    console = require("rich.console", "rich").Console(highlight=False)
    require("matplotlib.figure", "matplotlib")
    target = check_device(device)
    resolved = _dispatch.select("train", backend, _dispatch.Case(target, torch.float32))
    out = out or Path("runs") / preset.name
    out.mkdir(parents=True, exist_ok=True)
    dataset = datasets.load(preset.name, data_dir, notice=lambda line: _say(console, line))
    _say(console, f"data: {dataset.source}")
    return Job(preset, dataset, out, resolved, target, quiet, console)


def _say(console: Any, line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


def check_device(name: str) -> torch.device:
    """A device that tensors can live on. Raises: ValueError."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device '{name}' cannot be used: {reason}") from error
    return device


def seed_range(first: int, count: int) -> range:
    """``count`` seeds from ``first`` on. Raises: ValueError."""
    if count < 1:
        raise ValueError(f"seeds must be at least 1, got {count}")
    if not 0 <= first < 2**63 - count:
        raise ValueError(f"seed must lie in [0, 2^63), got {first}")
    return range(first, first + count)


def execute(job: Job, seeds: Sequence[int]) -> bool:
    """Train once per seed, print and save; True where Ctrl-C cut it short.

    What was finished or under way by then is saved all the same.
    """
    results: list[RunResult] = []
    interrupted = False
    for seed in seeds:
        bar = nullcontext() if job.quiet else report.EpochBar(job.preset, seed, job.console)
        try:
            with bar as on_epoch:
                result = train(
                    job.preset, job.dataset, seed, job.device, job.backend, on_epoch=on_epoch
                )
        except KeyboardInterrupt:
            interrupted = True
            break
        results.append(result)
        if result.interrupted:
            interrupted = True
            break
    if interrupted:
        _say(job.console, f"interrupted; {len(results)} of {len(seeds)} runs to save")
    if results:
        settings = {"backend": job.backend, "device": str(job.device), "seeds": list(seeds)}
        report.print_results(job.console, results)
        paths = report.save(job.out, job.preset, job.dataset, results, settings)
        names = ", ".join(path.name for path in paths)
        _say(job.console, f"wrote {names} to {job.out}")
    return interrupted
