"""The processes that train together: those that ``torchrun`` started, or this one alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

#: Until a process that does not answer ends the others; one of them may read data for long.
TIMEOUT = timedelta(minutes=5)
EXIT_FAILED = 2


class World:
    """This process's rank among ``size``; what communicates is called by all alike.

    ``device`` is where this process computes, and ``restarts`` how often ``torchrun`` has started
    the processes again because one had failed; None where it has not started them at all.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, device: str = "cpu", restarts: int | None = None
    ) -> None:
        self.rank, self.size, self.device, self.restarts = rank, size, device, restarts

    @property
    def first(self) -> bool:
        """Whether this is the process that shows, prints and saves."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(int(flag), device=self.device)))

    def of_first(self, value: Any) -> Any:
        """What the first process gives, on all."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device(self.device))
        return values[0]

    def draw_apart(self, seed: int, epoch: int) -> None:
        """Random numbers of an epoch: the first process goes on with those of a training alone, the
        others have streams of their own, which depend on nothing else."""
        if not self.first:
            words = np.random.SeedSequence([seed, epoch, self.rank]).generate_state(1, np.uint64)
            torch.manual_seed(int(words[0]))

    def wrap(self, model: nn.Module) -> nn.Module:
        """A module whose gradients are means over the processes."""
        if self.size == 1:
            return model
        devices = None if self.device == "cpu" else [torch.device(self.device)]
        # Every step has the same graph, and parameters that have no part in it are not waited for.
        return DistributedDataParallel(model, device_ids=devices, static_graph=True)

    def slice_of(self, count: int) -> slice:
        """This process's part of ``count`` things in a row."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    @contextmanager
    def together(self, name: str, *kinds: type[Exception]) -> Iterator[None]:
        """An error of these kinds on one process ends all, with one line that says whose it is."""
        failed = None
        try:
            yield
        except kinds as error:
            if self.size == 1:
                raise
            failed = " ".join(str(error).split())
        if self.size == 1:
            return
        texts: list[str | None] = [None] * self.size
        dist.all_gather_object(texts, failed)
        found = [(rank, text) for rank, text in enumerate(texts) if text is not None]
        if not found:
            return
        rank, text = found[0]
        if self.first:
            whose = "" if [text] * self.size == texts else f"rank {rank}: "
            print(f"gatkernels {name}: error: {whose}{text}", file=sys.stderr, flush=True)
        dist.barrier()  # or whoever ends first has the one that prints killed
        raise SystemExit(EXIT_FAILED)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process goes before the others, which find what it left in the cache."""
        if self.size > 1 and not self.first:
            dist.barrier()
        try:
            yield
        finally:
            if self.size > 1 and self.first:
                dist.barrier()


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that the environment names: by ``torchrun``'s variables, or this process alone.

    On GPUs each process of a machine takes its own.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    restarts = None if count is None else int(count)
    if size == 1:
        yield World(device=device, restarts=restarts)
        return
    backend = "gloo"
    if torch.device(device).type == "cuda":
        backend, device = "nccl", f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield World(rank, size, device, restarts)
    finally:
        dist.destroy_process_group()
