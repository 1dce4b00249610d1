"""Timing: interleaved turns, so that a busy machine disturbs every contestant alike."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

PHASES = ("forward", "backward", "step")
#: Seconds (one step at least) that a step runs untimed before each timed turn: threads, caches and
#: above all memory, which an idle system may have handed back, are then as warm as in training.
WARM = 0.1
TURNS = 5
SAMPLES_PER_TURN = 20
#: Last-level cache assumed where the system does not tell, in bytes.
CACHE_BYTES = 32 * 2**20
#: Clock cycles, about 2 ms, that a GPU sleeps before a step that is timed with the host ahead.
AHEAD = 4_000_000
#: CUDA steps shorter than this are also timed as one replayed graph: launches would hide them.
REPLAY_BELOW = 1e-3


class Timed(Protocol):
    """Anything with a forward and a backward, on inputs that change from run to run."""

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

    def over(self, count: int) -> Timing:
        """Of one of so many."""
        return Timing(self.median / count, self.q1 / count, self.q3 / count, self.rounds)

    @property
    def spread(self) -> float:
        """Interquartile range, as a part of the median."""
        return (self.q3 - self.q1) / self.median if self.median else 0.0


def last_level_cache(device: torch.device) -> int:
    """Bytes of the last-level cache (L2 on a GPU)."""
    if device.type == "cuda":
        size = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
        return int(size) or CACHE_BYTES
    try:
        found = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (ValueError, OSError, AttributeError):
        found = 0
    return found if found > 0 else CACHE_BYTES


def copies_for_cold_caches(size: int, device: torch.device) -> int:
    """How many inputs of `size` bytes, used in turn, exceed twice the last-level cache."""
    return max(1, min(64, -(-2 * last_level_cache(device) // max(size, 1))))


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


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Leave what exists now out of collections, which would walk through every library else."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def in_turns(
    prepare: Mapping[str, Callable[[], Callable[[], Any]]],
    rounds: int,
    tick: Callable[[str], None] = lambda name: None,
) -> dict[str, Timing]:
    """Seconds of what each of ``prepare`` gives, in rounds that alternate in their order.

    The first round warms up. ``tick`` is told the name before each turn.
    """
    samples: dict[str, list[float]] = {name: [] for name in prepare}
    names = list(prepare)
    for turn in range(rounds + 1):
        for name in reversed(names) if turn % 2 else names:
            tick(name)
            run = prepare[name]()
            with no_collection():
                start = time.perf_counter()
                run()
                samples[name].append(time.perf_counter() - start)
    return {name: Timing.of(found[1:]) for name, found in samples.items()}


def foreign_seconds() -> float | None:
    """Processor seconds that all other processes have used since some fixed time."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, irq, softirq, *steal = (int(field) for field in fields[:8])
    except (OSError, ValueError):
        return None
    busy = user + nice + system + irq + softirq + sum(steal)
    return busy / os.sysconf("SC_CLK_TCK") - time.process_time()


def cpu_sample(step: Timed) -> tuple[float, float, float]:
    """Seconds of one forward, one backward, and both."""
    start = time.perf_counter()
    out = step.forward()
    middle = time.perf_counter()
    gradients = step.backward()
    stop = time.perf_counter()
    del out, gradients
    return middle - start, stop - middle, stop - start


def cuda_sample(step: Timed, ahead: bool = False) -> tuple[float, float, float]:
    """The same on the device's own clock, by events on the current stream.

    An idle GPU waits between the first event and the first kernel for the host, which then is part
    of the time; with the host ``ahead``, since the GPU sleeps first, kernels alone are.
    """
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
    torch.cuda.synchronize()
    if ahead:
        torch.cuda._sleep(AHEAD)
    marks[0].record()
    out = step.forward()
    marks[1].record()
    gradients = step.backward()
    marks[2].record()
    marks[2].synchronize()
    del out, gradients
    first, second = marks[0].elapsed_time(marks[1]), marks[1].elapsed_time(marks[2])
    return first / 1e3, second / 1e3, (first + second) / 1e3


def sampler(
    device: torch.device, ahead: bool = False
) -> Callable[[Timed], tuple[float, float, float]]:
    return partial(cuda_sample, ahead=ahead) if device.type == "cuda" else cpu_sample


def replayed(step: Timed, runs: int, rounds: int = 20) -> Timing:
    """Seconds per step of `runs` steps captured as one CUDA graph, without launch overhead.

    `runs` is the number of inputs in rotation, so that replays meet cold caches as well.
    Raises: RuntimeError where the step cannot be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step.forward()
            step.backward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(runs):
            step.forward()
            step.backward()
    samples = []
    for _ in range(rounds + 1):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        samples.append(start.elapsed_time(stop) / 1e3 / runs)
    return Timing.of(samples[1:])


def issued(step: Timed, runs: int = 20, rounds: int = 10) -> Timing:
    """Seconds of the host for a forward and a backward it does not wait for, on a GPU."""
    samples = []
    with no_collection():
        for _ in range(rounds + 1):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(runs):
                step.forward()
                step.backward()
            samples.append((time.perf_counter() - start) / runs)
    torch.cuda.synchronize()
    return Timing.of(samples[1:])


def warm(step: Timed, sample: Callable[[Timed], Any]) -> float:
    """Run untimed for WARM seconds; return the seconds of the last step."""
    start = time.perf_counter()
    while True:
        before = time.perf_counter()
        sample(step)
        now = time.perf_counter()
        if now - start >= WARM:
            return now - before


def plan(spent: float, seconds: float) -> tuple[int, int]:
    """Turns, and samples in each, of a step that takes `spent` where it may take `seconds`.

    A step that would take four times that in five turns is timed twice, right after its warm-up.
    """
    if spent * TURNS > 4 * seconds:
        return 0, 2
    return TURNS, max(1, min(SAMPLES_PER_TURN, int(seconds / TURNS / spent)))


def interleave(
    steps: Mapping[str, Timed],
    device: torch.device,
    seconds: float,
    tick: Callable[[str], None] = lambda name: None,
    ahead: bool = False,
) -> dict[str, dict[str, Timing]]:
    """Time every step in turns whose order rotates; seconds by name and phase.

    Each step gets about `seconds` in all, and two samples at least. `tick` is told the name before
    each turn. ``ahead``: as :func:`cuda_sample` has it.
    """
    sample = sampler(device, ahead)
    samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in steps}
    plans = {}

    def take(name: str, count: int) -> None:
        samples[name] += [sample(steps[name]) for _ in range(count)]

    with frozen_heap():
        for name, step in steps.items():
            tick(name)
            with no_collection():
                turns, count = plans[name] = plan(warm(step, sample), seconds)
                if turns == 0:
                    take(name, count)
        names = [name for name, (turns, _) in plans.items() if turns]
        for turn in range(TURNS):
            start = turn % max(len(names), 1)
            for name in names[start:] + names[:start]:
                tick(name)
                with no_collection():
                    warm(steps[name], sample)
                    take(name, plans[name][1])
    return {
        name: {
            phase: Timing.of([run[column] for run in samples[name]])
            for column, phase in enumerate(PHASES)
        }
        for name in steps
    }
