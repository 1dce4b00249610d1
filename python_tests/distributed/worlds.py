"""Worlds of processes for tests, which talk over gloo on this machine."""

from __future__ import annotations

import io
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import emulator
import torch
import torch.distributed as dist
from graphs import DEVICE
from tolerance import BACKEND

from gatkernels.backends import cuda, schedule

_context = multiprocessing.get_context("forkserver")
# what children would import one by one, and at very different times on a busy machine
_context.set_forkserver_preload(
    ["pytest", "gatkernels.distributed", "gatkernels.nn", "gatkernels.pyg"]
)


class Ended(NamedTuple):
    """What became of a rank: its result, or what it raised as ``"Type: text"``; None: it died."""

    result: Any
    error: str | None
    seconds: float


def _child(rank: int, size: int, folder: str, body: Any, args: Any, to: Connection) -> None:
    torch.set_num_threads(1)
    schedule.ORDERED = 200  # as in the parent
    if BACKEND == "cuda" and DEVICE.type == "cpu":
        cuda.module = emulator.module()
    start = time.monotonic()
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
        )
        start = time.monotonic()
        _send(to, Ended(body(rank, *args), None, time.monotonic() - start))
    except BaseException as error:
        traceback.print_exc()
        _send(to, Ended(None, f"{type(error).__name__}: {error}", time.monotonic() - start))
    to.close()
    os._exit(0)  # without torch's farewell, for which a lost rank would be waited for


def _send(to: Connection, ended: Ended) -> None:
    """As bytes: tensors that are sent would be shared with a process that ends."""
    data = io.BytesIO()
    torch.save(tuple(ended), data)
    to.send_bytes(data.getvalue())


def ends(size: int, body: Callable[..., Any], *args: Any, limit: float = 100.0) -> list[Any]:
    """What became of each rank of a world that runs ``body(rank, *args)``, a module's function."""
    with tempfile.TemporaryDirectory() as folder:
        pipes = [_context.Pipe(duplex=False) for _ in range(size)]
        children = [
            _context.Process(target=_child, args=(rank, size, folder, body, args, pipes[rank][1]))
            for rank in range(size)
        ]
        for child, (_, end) in zip(children, pipes, strict=True):
            child.start()
            end.close()
        found: list[Any] = [None] * size
        waiting = {pipe: rank for rank, (pipe, _) in enumerate(pipes)}
        deadline = time.monotonic() + limit
        while waiting:
            ready = wait(list(waiting), timeout=max(deadline - time.monotonic(), 0.0))
            if not ready:
                break
            for pipe in ready:
                rank = waiting.pop(pipe)
                try:
                    data = io.BytesIO(pipe.recv_bytes())
                    found[rank] = Ended(*torch.load(data, weights_only=False))
                except EOFError:
                    pass
        for child in children:
            child.kill()
            child.join()
        assert not waiting, f"ranks {sorted(waiting.values())} did not end within {limit} s"
        return found


def run(size: int, body: Callable[..., Any], *args: Any, limit: float = 100.0) -> list[Any]:
    """The result of each rank, all of which must come to their end."""
    found = ends(size, body, *args, limit=limit)
    errors = [
        f"rank {r}: {'died' if e is None else e.error}"
        for r, e in enumerate(found)
        if e is None or e.error
    ]
    assert not errors, "\n".join(errors)
    return [one.result for one in found]
