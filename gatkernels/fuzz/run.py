"""``gatkernels fuzz``: random cases until one fails, or there are enough."""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis

from gatkernels.fuzz.child import CaseFailed, Child
from gatkernels.fuzz.strategies import kinds

#: Cases that hypothesis draws from one seed.
BATCH = 500
#: Of a hundred cases, how many are of each kind; operators make up the rest.
SHARES = {"arguments": 15, "layers": 20}


class Failure(NamedTuple):
    case: Any
    message: str


class Outcome(NamedTuple):
    """Cases that were checked, by kind; the first that failed, shrunk."""

    counts: dict[str, int]
    seconds: float
    failure: Failure | None


def run(
    backend: str,
    device: str,
    cases: int | None,
    minutes: float | None,
    seed: int,
    tick: Callable[[int], None],
) -> Outcome:
    """Checks cases of one backend, one after the other.

    Args:
        backend, device: Of the operators.
        cases, minutes: How many, or for how long; whichever ends first.
        seed: The same cases for the same seed, whatever their number.
        tick: Called with the number of cases so far.
    """
    strategies, start = kinds(backend, device), time.monotonic()
    counts: Counter[str] = Counter()
    end = None if minutes is None else start + 60.0 * minutes

    def rest() -> int:
        left = BATCH if cases is None else cases - counts.total()
        return left if end is None or time.monotonic() < end else 0

    with Child() as child:
        batch = 0
        while rest() > 0:
            for name, strategy in strategies.items():
                share = SHARES.get(name, 100 - sum(SHARES.get(n, 0) for n in strategies))
                count = min(rest(), max(1, BATCH * share // 100))
                if count < 1:
                    continue
                of_batch = random.Random(f"{seed}/{batch}/{name}").getrandbits(63)
                failure = _batch(child, strategy(), count, of_batch, name, counts, tick)
                if failure is not None:
                    return Outcome(dict(counts), time.monotonic() - start, failure)
            batch += 1
    return Outcome(dict(counts), time.monotonic() - start, None)


def _batch(
    child: Child,
    strategy: Any,
    count: int,
    seed: int,
    name: str,
    counts: Counter[str],
    tick: Callable[[int], None],
) -> Failure | None:
    """Checks ``count`` cases; hypothesis shrinks one that fails, and tries the smallest last."""
    last: list[Failure] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(strategy)
    def check(case: Any) -> None:
        if not last:
            counts[name] += 1
            tick(counts.total())
        try:
            child.check(case)
        except CaseFailed as failed:
            last.append(Failure(case, str(failed)))
            raise

    try:
        check()
    except CaseFailed:
        return last[-1]
    except hypothesis.errors.Flaky:
        failure = last[-1]
        return failure._replace(message=f"{failure.message} (not every time)")
    return None


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
    return f"from gatkernels.fuzz import {', '.join(sorted(used))}\n\n{made}.check()"
