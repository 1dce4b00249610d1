"""How many threads a kernel on the CPU may use."""

from __future__ import annotations

import os
import warnings

import torch

#: Whether this process was forked. OpenMP's threads are not here if they were there, and OpenMP,
#: which does not know, would wait for them for ever.
_forked = False
_told = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def count() -> int:
    """Torch's, or 1 in a forked process, which says so once."""
    wanted = torch.get_num_threads()
    if not _forked or wanted == 1:
        return wanted
    global _told
    if not _told:
        _told = True
        warnings.warn(
            "gatkernels runs on one thread in this process, as it was forked: OpenMP's threads do "
            "not outlive a fork, and torch's own operations may hang here; start processes with "
            "multiprocessing's 'spawn', or call torch.set_num_threads(1)",
            RuntimeWarning,
            stacklevel=2,
        )
    return 1
