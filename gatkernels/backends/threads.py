"""How many threads a kernel on the CPU may use.

A process that is forked has none of OpenMP's threads, which OpenMP does not know: it would wait for
them for ever. So kernels run on one thread there, where OpenMP had threads before the fork.
"""

from __future__ import annotations

import os
import threading
import warnings

import torch

_TASKS = "/proc/self/task"  # of Linux


def _others() -> int:
    """Threads that are not Python's; 0 where nobody counts them."""
    return len(os.listdir(_TASKS)) - threading.active_count() if os.path.isdir(_TASKS) else 0


#: Of other libraries, which have theirs from the start.
_idle = _others()
_used = False  # by kernels, several threads
_lost = False
_told = False


def _about_to_fork() -> None:
    global _used
    _used = _used or _others() > _idle  # by torch


def _forked() -> None:
    global _lost
    _lost = _lost or _used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_about_to_fork, after_in_child=_forked)


def nothing_ran() -> None:
    """Says that what was imported until now has threads of its own, but ran nothing on OpenMP's."""
    global _idle
    _idle = _others()


def count() -> int:
    """Torch's; 1 in a process that has lost OpenMP's, which is said once."""
    global _used, _told
    wanted = torch.get_num_threads()
    if wanted == 1:
        return 1
    if not _lost:
        _used = True
        return wanted
    if not _told:
        _told = True
        warnings.warn(
            "gatkernels runs on one thread in this process: it was forked from one that had "
            "OpenMP's threads, which do not outlive a fork (torch's own operations may hang here); "
            "start processes with multiprocessing's 'spawn', or call torch.set_num_threads(1)",
            RuntimeWarning,
            stacklevel=2,
        )
    return 1
