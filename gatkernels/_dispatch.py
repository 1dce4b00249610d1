"""The backends: which can run a case, and why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from gatkernels import _native


class BackendUnavailable(RuntimeError):
    """Asked for a backend that cannot run the case; the message says why."""


class Case(NamedTuple):
    """What a backend needs to know to say whether it can run a call."""

    device: torch.device
    dtype: torch.dtype


def _cpu(case: Case) -> str | None:
    if case.device.type != "cpu":
        return f"runs on CPU tensors, got device {case.device}"
    return _native.cpu_missing


def _reference(case: Case) -> str | None:
    return None


#: In the order in which "auto" tries them.
_SUPPORTS: dict[str, Callable[[Case], str | None]] = {"cpu": _cpu, "reference": _reference}
BACKENDS = tuple(_SUPPORTS)


def supports(backend: str, case: Case) -> str | None:
    """None where ``backend`` can run ``case``, else the reason why not."""
    return _SUPPORTS[backend](case)


def select(op: str, backend: str, case: Case) -> str:
    """The backend to run ``case`` on. An explicit choice never falls back; "auto" may."""
    if backend == "auto":
        return next(name for name in BACKENDS if supports(name, case) is None)
    if backend not in _SUPPORTS:
        names = ", ".join(("auto", *BACKENDS))
        raise ValueError(f"{op}: 'backend' must be one of {names}, got '{backend}'")
    reason = supports(backend, case)
    if reason is not None:
        raise BackendUnavailable(f"{op}: backend '{backend}' cannot run this: {reason}")
    return backend


def explain(case: Case | None = None) -> list[tuple[str, str | None]]:
    """Each backend with None, or the reason why it cannot run ``case`` (float32 on the CPU)."""
    case = case or Case(torch.device("cpu"), torch.float32)
    return [(name, supports(name, case)) for name in BACKENDS]


def isa() -> str:
    """The instruction set the CPU kernels run on, or "none" without the compiled module."""
    return "none" if _native.cpu_missing else str(_native.cpu_module().isa)


__all__ = ["BACKENDS", "BackendUnavailable", "Case", "explain", "isa", "select", "supports"]
