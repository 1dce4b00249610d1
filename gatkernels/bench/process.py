"""Work in a fresh process: nothing warmed up, a limit on memory, and a crash that costs one result.

Children are forked from a server that has imported the libraries and run nothing, so that a fresh
process costs milliseconds instead of the seconds the imports take. For a GPU they start anew:
libraries may ask CUDA for its devices while they are imported, after which no fork can use it.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from gatkernels.bench.graphs import Unavailable

#: Told where the work is, in words; of work that goes on, also what it has found.
Tick = Callable[[Any], None]
TIMEOUT = 900.0
#: Part of the memory free at the start that a child may take, unless told otherwise.
MEMORY_SHARE = 0.9


class ChildError(Exception):
    """The work failed; `status` is "OOM", "skipped" or "error"."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class LateError(ChildError):
    """The work took longer than it might."""


def failure(error: BaseException) -> ChildError:
    """What went wrong in one line: too little memory, something not to be had here, or an error."""
    text = " ".join(str(error).split())[:300] or repr(error)
    memory = ("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc")
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        words in text.lower() for words in memory
    ):
        return ChildError("OOM", text)
    if isinstance(error, (NotImplementedError, Unavailable)):
        return ChildError("skipped", text)
    return ChildError("error", f"{type(error).__name__}: {text}")


def available_memory() -> int | None:
    """Bytes that can be had without swapping, where the system tells."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def limit_memory(limit: int | None, device: str = "cpu") -> None:
    """Let this process take `limit` bytes more: what passes that raises and harms nobody else.

    On a GPU the limit is one of its own memory. CUDA reserves address space for all memory there
    is, so that a limit on addresses would keep it from starting.
    """
    if device != "cpu":
        if limit is not None:
            total = torch.cuda.get_device_properties(device).total_memory
            index = torch.device(device).index
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), index)
        return
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return
    if limit is None:
        free = available_memory()
        if free is None:
            return
        limit = int(free * MEMORY_SHARE)
    size = pages * resource.getpagesize() + limit
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _context(device: str) -> Any:
    if device != "cpu" or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gatkernels.bench.preload"])
    return context


def call(
    work: Callable[..., Any],
    *arguments: Any,
    threads: int,
    memory_limit: int | None = None,
    device: str = "cpu",
    timeout: float = TIMEOUT,
    tick: Tick = lambda text: None,
) -> Any:
    """`work(*arguments, tick)` in a fresh process; `device` is whose memory is limited.

    Raises: ChildError.
    """
    context = _context(device)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(
        target=_child,
        args=(sender, work, arguments, threads, (memory_limit, device)),
        daemon=False,
    )
    child.start()
    sender.close()
    deadline = time.monotonic() + timeout
    try:
        while receiver.poll(max(deadline - time.monotonic(), 0.0)):
            kind, payload = receiver.recv()
            if kind == "done":
                return payload
            if kind == "failed":
                raise ChildError(*payload)
            tick(payload)
        raise LateError("error", f"no result in {timeout:.0f} s")
    except (EOFError, ConnectionError):
        child.join()
        code = child.exitcode
        if code == -signal.SIGKILL:
            raise ChildError("OOM", "the system stopped the process") from None
        raise ChildError("error", f"the process ended with status {code}") from None
    finally:
        receiver.close()
        if child.is_alive():
            child.join(1.0)
        if child.is_alive():
            child.kill()
        child.join()


def _child(
    sender: Connection,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    threads: int,
    limit: tuple[int | None, str],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt ends
    threading.Thread(target=_end_with_parent, daemon=True).start()
    importlib.import_module("gatkernels.bench.adapters")  # registers the peers, where no server has
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    try:
        limit_memory(*limit)
        result = work(*arguments, lambda text: sender.send(("tick", text)))
    except Exception as error:
        failed = failure(error)
        del error
        gc.collect()
        sender.send(("failed", (failed.status, failed.reason)))
    else:
        sender.send(("done", result))
    sender.close()


def _end_with_parent() -> None:
    """Wait for the end of the process that asked for the work, whatever ended it, and go too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
