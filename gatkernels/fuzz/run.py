"""``gatkernels fuzz``: random cases until one fails, or there are enough."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from gatkernels.fuzz.child import CaseFailed, Child
from gatkernels.fuzz.draws import Draws, shrunk
from gatkernels.fuzz.kinds import Kind, kinds, name_of

#: Cases that are checked at once.
CHUNK = 100
#: A failure is made simpler for so many seconds.
SHRINKING = 120.0


class Failure(NamedTuple):
    case: Any
    message: str


class Outcome(NamedTuple):
    """Cases that were checked, by kind; one that failed, made simpler."""

    counts: dict[str, int]
    seconds: float
    failure: Failure | None


@dataclass(frozen=True)
class Chunk:
    """Cases ``first`` to ``first + count`` of a seed, each drawn from its number and the seed."""

    backend: str = "cpu"
    device: str = "cpu"
    seed: int = 0
    first: int = 0
    count: int = CHUNK

    def draws(self, place: int) -> Draws:
        return Draws(f"{self.seed}/{self.first + place}")

    def names(self) -> list[str]:
        """The kind of each case."""
        known = kinds(self.backend, self.device)
        return [name_of(known, self.draws(place)) for place in range(self.count)]

    def check(self) -> None:
        """Raises: AssertionError, where a case fails."""
        known = kinds(self.backend, self.device)
        for place in range(self.count):
            drawn(known, self.draws(place)).check()


def drawn(known: dict[str, Kind], draws: Draws) -> Any:
    return known[name_of(known, draws)](draws)


def run(
    backend: str,
    device: str,
    cases: int | None,
    minutes: float | None,
    seed: int,
    jobs: int,
    tick: Callable[[int], None],
) -> Outcome:
    """Checks cases of one backend.

    Args:
        backend, device: Of the operators.
        cases, minutes: How many, or for how long; whichever ends first.
        seed: The same cases for the same seed, whatever their number.
        jobs: Processes that check cases side by side.
        tick: Called with the number of cases so far.
    """
    start, lock = time.monotonic(), threading.Lock()
    end = None if minutes is None else start + 60.0 * minutes
    counts: Counter[str] = Counter()
    failures: list[Failure] = []
    given, stopped = 0, False

    def take() -> Chunk | None:
        nonlocal given
        with lock:
            count = CHUNK if cases is None else min(CHUNK, cases - given)
            if stopped or failures or count < 1 or (end is not None and time.monotonic() > end):
                return None
            given += count
            return Chunk(backend, device, seed, given - count, count)

    def work() -> None:
        with Child() as child:
            while (chunk := take()) is not None:
                failure = check(child, chunk)
                with lock:
                    counts.update(chunk.names())
                    if failure is not None:
                        failures.append(failure)
                tick(counts.total())

    with ThreadPoolExecutor(jobs) as pool:
        working = [pool.submit(work) for _ in range(jobs)]
        try:
            for one in working:
                one.result()
        finally:
            stopped = True
    return Outcome(dict(counts), time.monotonic() - start, failures[0] if failures else None)


def check(child: Child, chunk: Chunk) -> Failure | None:
    """All at once, and where that fails, one after the other; one that fails is made simpler."""
    try:
        child.check(chunk)
        return None
    except CaseFailed as failed:
        message = str(failed)
    known = kinds(chunk.backend, chunk.device)
    for place in range(chunk.count):
        draws = chunk.draws(place)
        try:
            child.check(drawn(known, draws))
        except CaseFailed as failed:
            return simplest(child, known, draws, str(failed))
    return Failure(chunk, f"{message} (not each case alone)")


def simplest(child: Child, known: dict[str, Kind], draws: Draws, message: str) -> Failure:
    """What is left of a case that fails when its choices have become simpler."""
    end = time.monotonic() + SHRINKING

    def fails(case: Any) -> bool:
        nonlocal message
        if time.monotonic() > end:
            return False
        try:
            child.check(case)
        except CaseFailed as failed:
            message = str(failed)
            return True
        return False

    case = shrunk(lambda again: drawn(known, again), draws.made, fails)
    return Failure(case, message)


def program(case: Any) -> str:
    """What repeats a case, to be run by Python."""
    used: set[str] = set()

    def text(value: Any, indent: str) -> str:
        if not dataclasses.is_dataclass(value):
            return repr(value)
        used.add(type(value).__name__)
        lines = []
        for field in dataclasses.fields(value):
            given = getattr(value, field.name)
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if given != default:
                lines.append(f"{indent}    {field.name}={text(given, indent + '    ')},")
        name = type(value).__name__
        return "\n".join([f"{name}(", *lines, f"{indent})"]) if lines else f"{name}()"

    made = text(case, "")
    lines = [f"from gatkernels.fuzz import {', '.join(sorted(used))}", "", f"case = {made}"]
    # ranks are processes that import the program
    return "\n".join([*lines, 'if __name__ == "__main__":', "    case.check()"])
