"""Timing: interleaved rounds, so that a busy machine disturbs every contestant alike."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PHASES = ("forward", "backward", "step")
#: Seconds (one step at least) that a step runs untimed before each timed run: threads, caches and
#: above all memory, which an idle system may have handed back, are then as warm as in training.
WARM = 0.2
MIN_ROUNDS, MAX_ROUNDS = 5, 30
#: Seconds that the rounds of one case may take, where the number of rounds is left open.
BUDGET = 30.0


class Timed(Protocol):
    """Anything with a forward and a backward."""

    def forward(self) -> Any: ...

    def backward(self) -> Any: ...


@dataclass(frozen=True)
class Timing:
    """Seconds: median and quartiles."""

    median: float
    q1: float
    q3: float
    rounds: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        if len(samples) < 2:
            return cls(samples[0], samples[0], samples[0], 1)
        q1, _, q3 = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(statistics.median(samples), q1, q3, len(samples))


@contextmanager
def no_collection() -> Iterator[None]:
    """Collect garbage now, and not again inside the block."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def foreign_seconds() -> float | None:
    """Processor seconds that all other processes have used since some fixed time."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, irq, softirq, *steal = (int(field) for field in fields[:8])
    except (OSError, ValueError):
        return None
    busy = user + nice + system + irq + softirq + sum(steal)
    return busy / os.sysconf("SC_CLK_TCK") - time.process_time()


def sample(step: Timed) -> tuple[float, float, float]:
    """Seconds of one forward, one backward, and both."""
    start = time.perf_counter()
    out = step.forward()
    middle = time.perf_counter()
    gradients = step.backward()
    stop = time.perf_counter()
    del out, gradients
    return middle - start, stop - middle, stop - start


def warm(step: Timed) -> None:
    start = time.perf_counter()
    sample(step)
    while time.perf_counter() - start < WARM:
        sample(step)


def interleave(
    steps: Mapping[str, Timed],
    rounds: int | None = None,
    tick: Callable[[str], None] = lambda name: None,
) -> dict[str, dict[str, Timing]]:
    """Time every step once per round, in an order that rotates; seconds by name and phase.

    A first round, not counted, sets the number of rounds where it is not given. `tick` is told the
    name before each run.
    """
    names = list(steps)
    start = time.perf_counter()
    for name in names:
        tick(name)
        warm(steps[name])
    if rounds is None:
        seconds = 2 * (time.perf_counter() - start)
        rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int(BUDGET / max(seconds, 1e-9))))

    samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            tick(name)
            with no_collection():
                warm(steps[name])
                samples[name].append(sample(steps[name]))
    return {
        name: {
            phase: Timing.of([run[column] for run in samples[name]])
            for column, phase in enumerate(PHASES)
        }
        for name in names
    }
