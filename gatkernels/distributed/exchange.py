"""Rows that ranks send each other: several tensors' in one message to each rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gatkernels.distributed.peers import Peers


class Route(NamedTuple):
    """Which rows a rank sends, and how many it gets.

    Attributes:
        places: ``[sent]`` int64, where the rows are, those for rank 0 first.
        sent: How many of them go to each rank.
        received: How many rows come from each rank; they are put in the order of the ranks.
    """

    places: Tensor
    sent: list[int]
    received: list[int]

    @property
    def rows(self) -> int:
        """Received."""
        return sum(self.received)

    def back(self) -> Route:
        """The way back, of rows that are where they were put: ``places`` of all of them."""
        return Route(torch.arange(self.rows, device=self.places.device), self.received, self.sent)


class Transfer:
    """Rows on their way.

    Of each rank there is one message, whose tensors lie one behind the other: wide elements first,
    so that each begins at a multiple of its element's size.
    """

    def __init__(
        self, peers: Peers, route: Route, tensors: Sequence[Tensor], traffic: Counter[str], op: str
    ) -> None:
        """Begins to send the rows ``route.places`` of each of ``tensors [n, ...]``."""
        self._route, self._count = route, len(tensors)
        self._order = sorted(range(len(tensors)), key=lambda k: -tensors[k].element_size())
        self._like = [tensors[k] for k in self._order]
        row = sum(_row_bytes(t) for t in self._like)
        sends, self._receives = (
            [route.places.new_empty(count * row, dtype=torch.uint8) for count in counts]
            for counts in (route.sent, route.received)
        )
        for message, places in zip(sends, route.places.split(route.sent), strict=True):
            for tensor, part in zip(self._like, self._parts(message, len(places)), strict=True):
                torch.index_select(tensor, 0, places, out=part)
        traffic[op] += sum(message.numel() for message in sends)
        self._finishes = [peers.start(sends, self._receives, op)]

    def _parts(self, message: Tensor, rows: int) -> list[Tensor]:
        """The tensors' rows in a message."""
        sizes = [rows * _row_bytes(t) for t in self._like]
        return [
            part.view(t.dtype).view(rows, *t.shape[1:])
            for t, part in zip(self._like, message.split(sizes), strict=True)
        ]

    def into(self, targets: Sequence[Tensor]) -> None:
        """Waits, and writes the rows that have come, ``[received, ...]`` of each tensor.

        Once: messages are let go of as soon as they have been sent or read.
        """
        self._finishes.pop()()
        self._receives.reverse()
        start = 0
        for rows in self._route.received:
            message = self._receives.pop()
            for place, part in zip(self._order, self._parts(message, rows), strict=True):
                targets[place][start : start + rows] = part
            start += rows


def _row_bytes(tensor: Tensor) -> int:
    return tensor.element_size() * tensor.shape[1:].numel()


class Halo:
    """``[own + halo, ...]`` of each of several tensors ``[own, ...]``, the rows of other ranks
    behind its own, which are on their way; None of None."""

    def __init__(
        self,
        peers: Peers,
        route: Route,
        tensors: Sequence[Tensor | None],
        traffic: Counter[str],
        op: str,
    ) -> None:
        self._rows = route.rows
        self._tensors = [None if t is None else t.detach() for t in tensors]
        self._transfer = Transfer(peers, route, self._present(), traffic, op)

    def _present(self) -> list[Tensor]:
        return [t for t in self._tensors if t is not None]

    def wait(self) -> list[Tensor | None]:
        """Once."""
        present = self._present()
        wide = [t.new_empty(t.shape[0] + self._rows, *t.shape[1:]) for t in present]
        for whole, t in zip(wide, present, strict=True):
            whole[: t.shape[0]] = t
        self._transfer.into([whole[t.shape[0] :] for whole, t in zip(wide, present, strict=True)])
        found = iter(wide)
        return [None if t is None else next(found) for t in self._tensors]
