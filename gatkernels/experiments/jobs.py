"""``gatkernels train``: prepare, train once per seed, show, save, resume."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from gatkernels import backends, disk
from gatkernels.experiments import datasets, progress, runs
from gatkernels.experiments.datasets import Dataset
from gatkernels.experiments.presets import Preset
from gatkernels.experiments.training import Epoch, Options, RunResult, Training
from gatkernels.experiments.world import World
from gatkernels.extras import require
from gatkernels.ops import checks

SAVE_SECONDS = 30.0  # between two states on disk


@dataclass(frozen=True)
class Job:
    """All that was decided before the first epoch."""

    preset: Preset
    dataset: Dataset
    options: Options
    out: Path
    console: Any
    quiet: bool = False
    tensorboard: bool = False
    resume: bool = False
    world: World = field(default_factory=World)

    def settings(self, seeds: Sequence[int]) -> dict[str, Any]:
        several = {
            "processes": self.world.size,
            "partition": self.options.partition,
            "exchange": self.options.exchange,
        }
        return {
            **(several if self.world.size > 1 else {}),
            "backend": self.options.backend,
            "device": self.options.device,
            "amp": self.options.amp,
            "compile": self.options.compile,
            "seeds": list(seeds),
            "data": None if self.dataset.folder is None else str(self.dataset.folder),
        }


def prepare(
    preset: Preset,
    options: Options,
    out: Path | None = None,
    data_dir: Path | None = None,
    *,
    quiet: bool = False,
    generate: bool = False,
    world: World | None = None,
) -> Job:
    """Check the choices, load the data and name their source.

    Of several processes, the first one alone prints and writes.

    Raises: ValueError, OSError, BackendUnavailable or MissingExtraError about the choices.
    """
    world = world or World(device=options.device)
    console = require("rich.console", "rich").Console(highlight=False, quiet=not world.first)
    require("matplotlib.figure", "matplotlib")
    device = checks.usable_device(world.device)
    case = backends.Case(device, torch.float32)
    resolved = backends.select("train", options.backend, case)
    options = replace(options, backend=resolved)
    out = out or Path("runs") / f"{preset.dataset}-{preset.model}"
    if world.first:
        runs.check_folder(out)
    dataset = datasets.load(
        preset.dataset, data_dir, notice=lambda line: say(console, line), generate=generate
    )
    say(console, f"data: {dataset.source}")
    return Job(preset, dataset, options, out, console, quiet or not world.first, world=world)


def say(console: Any, line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


def refuse_interrupted(out: Path) -> None:
    """Training anew must not cost what an interrupted one has done. Raises: RunError."""
    if not (out / runs.STATE).is_file():
        return
    state = runs.load_state(out)
    if state.get("finished", True):  # states of 0.1 do not say
        return
    try:
        run = state["run"]
        place = f"of seed {run['seed']} after epoch {len(run['rows'])}"
    except (KeyError, TypeError) as error:
        raise _no_state(out, error) from error
    raise runs.RunError(
        f"{out} holds an interrupted training, {place}: go on with --resume, or name another "
        "folder with --out"
    )


def _no_state(out: Path, error: Exception) -> runs.RunError:
    return runs.RunError(f"{out / runs.STATE}: not of a training: {disk.first_line(error)}")


def seed_range(first: int, count: int) -> range:
    """``count`` seeds from ``first`` on. Raises: ValueError."""
    if count < 1:
        raise ValueError(f"seeds must be at least 1, got {count}")
    if not 0 <= first < 2**63 - count:
        raise ValueError(f"seed must lie in [0, 2^63), got {first}")
    return range(first, first + count)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """A function that says whether Ctrl-C was pressed; pressed again, it interrupts at once."""
    pressed = False

    def handle(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    try:
        before = signal.signal(signal.SIGINT, handle)
    except ValueError:  # only the main thread may handle signals
        yield lambda: False
        return
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def execute(job: Job, seeds: Sequence[int]) -> tuple[list[RunResult], bool]:
    """Train once per seed, print and save; also whether Ctrl-C cut it short.

    Ctrl-C ends the run after the epoch under way; what was done by then is saved, and ``--resume``
    goes on from there.

    Raises: RunError where there is nothing to resume, or what is there was another training.
    """
    identity = _identity(job, seeds)
    results, current = _begin(job, identity)
    interrupted, trained = False, False
    with stop_requests() as pressed:

        def stopped() -> bool:
            return job.world.any(pressed())

        try:
            for seed in seeds[len(results) :]:
                data = job.dataset.with_split(seed)
                run = Training(job.preset, data, seed, job.options, world=job.world)
                if current is not None:
                    run.load_state_dict(current)
                    current = None
                    if run.finished:
                        results.append(run.result(_stop(run)))
                        continue
                    say(job.console, f"resuming seed {seed} at epoch {run.epoch}")
                trained = True
                last = seed == seeds[-1]
                result = _train(job, run, results, identity, last, stopped)
                if result is not None:
                    results.append(result)
                if stopped():
                    interrupted = True
                    break
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        say(job.console, _interruption(results, len(seeds)))
    elif not trained and job.world.of_first(_written(job.out, results)):
        what = f"all {len(results)} runs are finished" if len(results) > 1 else "it is finished"
        say(job.console, f"nothing to resume in {job.out}: {what}")
        return results, interrupted
    if results and job.world.first:
        progress.print_results(job.console, job.dataset.metric, results)
        paths = runs.save_run(job.out, job.preset, job.dataset, results, job.settings(seeds))
        names = ", ".join(path.name for path in paths)
        say(job.console, f"wrote {names} to {job.out}")
    return results, interrupted


def _interruption(results: Sequence[RunResult], wanted: int) -> str:
    """What Ctrl-C left, in words."""
    done = sum(not result.interrupted for result in results)
    words = f"stopped by Ctrl-C: {done} of {wanted} runs finished"
    if results and results[-1].interrupted:
        words += f"; seed {results[-1].seed} is saved as of epoch {results[-1].epochs}"
    return words


def _written(out: Path, results: Sequence[RunResult]) -> bool:
    """Whether the folder's metrics hold these very runs."""
    if not (out / runs.METRICS).is_file():
        return False
    entries = [(run["seed"], run["epochs"], run["stop"]) for run in runs.read_metrics(out)["runs"]]
    return all((run.seed, run.epochs, run.stop) in entries for run in results)


def _stop(run: Training) -> str:
    """Why a run is at its end, or that it is not."""
    if run.stopping.exhausted:
        return "patience"
    return "epochs" if run.finished else "interrupted"


def _train(
    job: Job,
    run: Training,
    done: list[RunResult],
    identity: dict[str, Any],
    last: bool,
    stopped: Callable[[], bool],
) -> RunResult | None:
    """Train one seed, the ``last`` or not, to its end or to Ctrl-C; None without a whole epoch."""

    def save() -> None:
        if not job.world.first:
            return
        state = {"identity": identity, "done": [vars(r) for r in done], "run": run.state_dict()}
        runs.save_state(job.out, {"finished": last and run.finished, **state})

    saved = time.monotonic()
    label = f"seed {run.seed}"
    bar: AbstractContextManager[Any] = (
        nullcontext() if job.quiet else progress.EpochBar(job.preset, label, job.console)
    )
    with bar as show, _board(job, run.seed) as log:
        while not (run.finished or stopped()):
            epoch = run.step()
            if show is not None:
                show(epoch)
            log(epoch)
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
    if not run.epoch:
        return None
    save()
    return run.result(_stop(run))


@contextmanager
def _board(job: Job, seed: int) -> Iterator[Callable[[Epoch], None]]:
    """Scalars for TensorBoard, where asked for."""
    if not (job.tensorboard and job.world.first):
        yield lambda epoch: None
        return
    writer = tensorboard_writer(job.out / "tensorboard" / f"seed-{seed}")

    def log(epoch: Epoch) -> None:
        for name in ("loss", "score"):
            values = {part: getattr(epoch, f"{part}_{name}") for part in ("train", "val")}
            for part, value in values.items():
                writer.add_scalar(f"{name}/{part}", value, epoch.number)

    try:
        yield log
    finally:
        writer.close()


def tensorboard_writer(folder: Path) -> Any:
    """Raises: MissingExtraError."""
    return require("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder))


def _identity(job: Job, seeds: Sequence[int]) -> dict[str, Any]:
    """What must be the same for a resumed run to be the same run."""
    config = job.preset.to_dict()
    if job.preset.schedule == "constant":  # the run may go on for longer
        del config["epochs"]
    del config["patience"]
    free = ("data", "processes", "partition", "exchange")
    settings = {k: v for k, v in job.settings(seeds[:1]).items() if k not in free}
    return {"config": config, "settings": settings, "data": job.dataset.fingerprint()}


def _begin(job: Job, identity: dict[str, Any]) -> tuple[list[RunResult], dict[str, Any] | None]:
    """The runs that were finished, and the state of the last: the first process's, on all."""
    found: tuple[list[RunResult], dict[str, Any] | None] = [], None
    with job.world.together("train", runs.RunError, OSError):
        if job.world.first:
            state, restarts = job.out / runs.STATE, job.world.restarts
            if job.resume or (restarts and state.is_file()):
                found = _resume(job, identity)
            elif restarts == 0:  # no restart shall resume what another training left
                state.unlink(missing_ok=True)
    done, current = job.world.of_first(found)
    return done, current


def _resume(job: Job, identity: dict[str, Any]) -> tuple[list[RunResult], dict[str, Any]]:
    """The runs that were finished, and the state of the last."""
    state = runs.load_state(job.out)
    try:
        differences = list(_differences(state["identity"], identity))
        done = [RunResult(**entry) for entry in state["done"]]
        run = dict(state["run"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _no_state(job.out, error) from error
    if differences:
        raise runs.RunError(
            f"{job.out}: cannot resume, it was trained with other {', '.join(differences)}"
        )
    return done, run


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for name, value in now.items():
        old = before.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            yield from _differences(old, value)
        elif old != value:
            yield f"{name} ({old}, not {value})"
