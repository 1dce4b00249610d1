"""A run's folder: what training leaves there, and how to read it back.

``gatkernels train`` writes to its output folder (``runs/<data set>-<model>`` by default):

``metrics.json``
    ``config`` (every field of the :class:`~gatkernels.experiments.presets.Preset`), ``settings``
    (backend, device, amp, compile, threads, seeds, the folder of the raw data), ``versions``,
    ``machine``, ``dataset`` (:meth:`Dataset.summary`, with a fingerprint of the data), ``summary``
    (mean and standard deviation over the seeds), ``checkpoint_seed``, and ``runs``: for each seed
    scores, ``best_epoch``, ``epochs``, ``stop``, ``seconds``, ``ms_per_epoch``, and ``curves``
    (``train_loss``, ``train_score``, ``val_loss``, ``val_score``, one value per epoch; None where
    a value is not finite). Scores lie in [0, 1]; ``dataset["metric"]`` names them.
``checkpoint.pt``
    The best weights of the seed with the best validation score (``state_dict``), with ``config``,
    ``in_channels``, ``out_channels``, ``seed``, ``epoch``, ``val_score``, ``test_score``;
    ``torch.load(..., weights_only=True)`` reads it.
``state.pt``
    Where training stands, for ``--resume``.
``curves.png``
    Loss and score of every epoch.

:func:`load_run` gives model, data and history of such a folder.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gatkernels.disk import first_line, folder_of, write
from gatkernels.experiments import datasets, plots
from gatkernels.experiments.datasets import Dataset
from gatkernels.experiments.presets import Preset
from gatkernels.experiments.training import RunResult, build_model
from gatkernels.extras import versions

FORMAT = 1
CHECKPOINT, METRICS, STATE, PICTURE = "checkpoint.pt", "metrics.json", "state.pt", "curves.png"


class RunError(ValueError):
    """A folder that is not what a run left there, or does not fit the data."""


@dataclass(frozen=True)
class Run:
    """A trained network with the data it was trained on and its history.

    ``model`` is in evaluation mode, with the checkpoint's weights; it is called with ``dataset.x``
    and the graph of :func:`~gatkernels.experiments.batches.build_graph`. ``metrics`` is the
    content of ``metrics.json``.
    """

    folder: Path
    preset: Preset
    dataset: Dataset
    model: nn.Module
    metrics: dict[str, Any]

    @property
    def seed(self) -> int:
        """The seed whose weights the model holds."""
        return int(self.metrics["checkpoint_seed"])

    @property
    def history(self) -> dict[str, Any]:
        """The entry of ``metrics["runs"]`` of that seed, with its curves."""
        return next(run for run in self.metrics["runs"] if run["seed"] == self.seed)

    def untrained_model(self) -> nn.Module:
        """The network with the weights it started from."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return build_model(self.preset, self.dataset).eval()


def load_run(
    folder: str | Path, data_dir: str | Path | None = None, device: torch.device | str = "cpu"
) -> Run:
    """Read a run's folder and load the data set it was trained on.

    Args:
        folder: What ``gatkernels train`` wrote.
        data_dir: Folder of the raw data files; by default whatever source on this machine has the
            data of the training, and where none has, those of
            :func:`~gatkernels.experiments.datasets.load`.
        device: Where the model and the data go.

    Raises:
        RunError: The folder is not a run's, the weights do not fit the network, or the data found
            are not those of the training.
        DatasetError: The data cannot be had.
    """
    folder = Path(folder)
    metrics, checkpoint = read_metrics(folder), _load_file(folder / CHECKPOINT)
    try:
        config = dict(checkpoint["config"])
        preset = Preset(config.pop("dataset"), config.pop("model")).with_options(**config)
        seed, expected = int(checkpoint["seed"]), metrics["dataset"]["fingerprint"]
        recorded = metrics["settings"]["data"]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder}: not the folder of a run: {first_line(error)}") from error
    dataset = None
    if data_dir is None:
        dataset = datasets.find(preset.dataset, expected, recorded, seed)
        data_dir = recorded if recorded is not None and Path(recorded).is_dir() else None
    if dataset is None:
        generate = not metrics["dataset"]["public_split"]
        dataset = datasets.load(preset.dataset, data_dir, seed, generate=generate)
    if dataset.fingerprint() != expected:
        raise RunError(
            f"{folder}: trained on other data ({metrics['dataset']['source']}) than found now "
            f"({dataset.source}); name the folder of the data with --data"
        )
    model = build_model(preset, dataset)
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except (KeyError, RuntimeError, AttributeError) as error:
        raise RunError(f"{folder / CHECKPOINT}: {_misfit(error)}") from error
    return Run(folder, preset, dataset.to(device), model.to(device).eval(), metrics)


def read_metrics(folder: str | Path) -> dict[str, Any]:
    """The contents of a run's ``metrics.json``. Raises: RunError."""
    path = Path(folder) / METRICS
    try:
        metrics = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        reason = first_line(error)
        raise RunError(f"{folder}: not the folder of a run: {METRICS}: {reason}") from error
    if not isinstance(metrics, dict) or "runs" not in metrics:
        raise RunError(f"{folder}: not the folder of a run: {METRICS} holds no runs")
    return metrics


def _load_file(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise RunError(f"{path}: cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RunError(f"{path}: not written by this version of gatkernels")
    return content


def _misfit(error: BaseException) -> str:
    """The first line of torch's message that names a weight."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "the weights do not fit the network: " + (
        lines[1] if len(lines) > 1 else first_line(error)
    )


def machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"


def summarise(results: Sequence[RunResult]) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds."""
    scores = [result.test_score for result in results]
    exact = [r.test_score_exact for r in results if r.test_score_exact is not None]
    return {
        "seeds": len(results),
        "test_score_mean": statistics.mean(scores),
        "test_score_std": statistics.stdev(scores) if len(results) > 1 else None,
        "test_score_exact_mean": statistics.mean(exact) if exact else None,
        "val_score_mean": statistics.mean(result.val_score for result in results),
        "ms_per_epoch": statistics.median(result.ms_per_epoch for result in results),
    }


def best_run(results: Sequence[RunResult]) -> RunResult:
    """The run to keep, by validation score: the test nodes must not choose."""
    return max(results, key=lambda result: result.val_score)


def build_metrics(
    preset: Preset, dataset: Dataset, results: Sequence[RunResult], settings: dict[str, Any]
) -> dict[str, Any]:
    """The contents of ``metrics.json``."""
    return {
        "format": FORMAT,
        "config": preset.to_dict(),
        "settings": {**settings, "threads": torch.get_num_threads()},
        "versions": versions(),
        "machine": machine(),
        "dataset": dataset.summary(),
        "summary": summarise(results),
        "checkpoint_seed": best_run(results).seed,
        "runs": [entry(run) for run in results],
    }


def entry(run: RunResult) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "test_score": run.test_score,
        "test_score_exact": run.test_score_exact,
        "test_loss": _plain(run.test_loss),
        "val_score": run.val_score,
        "best_epoch": run.best_epoch,
        "epochs": run.epochs,
        "stop": run.stop,
        "seconds": round(run.seconds, 3),
        "ms_per_epoch": round(run.ms_per_epoch, 4),
        "curves": {name: [_plain(value) for value in curve] for name, curve in run.curves.items()},
    }


def _plain(value: float) -> float | None:
    """Six digits; None where JSON has no number for it."""
    return round(value, 6) if math.isfinite(value) else None


def save_run(
    folder: Path,
    preset: Preset,
    dataset: Dataset,
    results: Sequence[RunResult],
    settings: dict[str, Any],
) -> list[Path]:
    """Write ``checkpoint.pt``, ``metrics.json`` and ``curves.png``; return their paths."""
    metrics = build_metrics(preset, dataset, results, settings)
    kept = best_run(results)
    checkpoint = {
        "format": FORMAT,
        "config": preset.to_dict(),
        "in_channels": dataset.num_features,
        "out_channels": dataset.num_classes,
        "seed": kept.seed,
        "epoch": kept.best_epoch,
        "val_score": kept.val_score,
        "test_score": kept.test_score,
        "state_dict": kept.state,
    }
    return [
        write(folder / CHECKPOINT, lambda path: torch.save(checkpoint, path)),
        write_json(folder / METRICS, metrics),
        write(folder / PICTURE, lambda path: plots.curves(metrics, path)),
    ]


def save_state(folder: Path, state: dict[str, Any]) -> None:
    write(folder / STATE, lambda path: torch.save({"format": FORMAT, **state}, path))


def load_state(folder: Path) -> dict[str, Any]:
    """What :func:`save_state` wrote. Raises: RunError."""
    if not (folder / STATE).is_file():
        raise RunError(f"{folder}: nothing to resume, no {STATE} there")
    return _load_file(folder / STATE)


def write_json(path: Path, content: Any) -> Path:
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    return write(path, lambda part: part.write_text(text))


def check_folder(out: Path) -> None:
    """Make sure files can be written there before hours are spent. Raises: OSError."""
    with folder_of(out):
        probe = out / ".part-probe"
        probe.touch()
        probe.unlink()
