"""Choices that a case is made of, each a number below another, the simplest first."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Draws:
    """Choices: those that are given, then random ones, or without a seed the simplest.

    Attributes:
        made: Choices so far.
    """

    def __init__(self, seed: str | None = None, given: Sequence[int] = ()) -> None:
        self._random = None if seed is None else random.Random(seed)
        self._given = given
        self.made: list[int] = []

    def below(self, count: int) -> int:
        place = len(self.made)
        if place < len(self._given):
            choice = min(self._given[place], count - 1)
        else:
            choice = 0 if self._random is None else int(self._random.random() * count)
        self.made.append(choice)
        return choice

    def between(self, first: int, last: int) -> int:
        return first + self.below(last - first + 1)

    def one_of(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def yes(self) -> bool:
        return self.below(2) == 1


def shrunk(
    draw: Callable[[Draws], Any], choices: Sequence[int], fails: Callable[[Any], bool]
) -> Any:
    """The simplest case found that fails as that of ``choices`` does: one choice after the other
    becomes simpler, until none can.

    Args:
        draw: Makes a case.
        choices: Those of a case that fails.
        fails: Whether a case does.
    """
    best = list(choices)
    found = draw(Draws(given=best))
    again = True
    while again:
        again = False
        place = 0
        while place < len(best):
            now = best[place]
            for simpler in sorted({0, now // 2, now - 1}):
                draws = Draws(given=[*best[:place], simpler, *best[place + 1 :]])
                if 0 <= simpler < now and fails(case := draw(draws)):
                    best, found, again = draws.made, case, True
                    break
            place += 1
    return found
