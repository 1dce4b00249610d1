"""The backends: which can run a case and why not, and where their kernels are."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import NamedTuple

import torch

from gatkernels.backends import compiled, cuda, native
from gatkernels.backends.protocol import Kernels


class BackendUnavailable(RuntimeError):
    """Asked for a backend that cannot run the case; the message says why."""


class Case(NamedTuple):
    """What a backend needs to know to say whether it can run a call."""

    device: torch.device
    dtype: torch.dtype


def _cuda(case: Case) -> str | None:
    return cuda.why_not(case.device)


def _cpu(case: Case) -> str | None:
    if case.device.type != "cpu":
        return f"runs on CPU tensors, got device {case.device}"
    return native.cpu_missing


#: Triton's interpreter runs the kernels on CPU tensors, slowly: for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_TRITON_MISSING = importlib.util.find_spec("triton") is None


def _triton(case: Case) -> str | None:
    if _TRITON_MISSING:
        return "the package triton is missing: pip install triton"
    if case.device.type != ("cpu" if INTERPRETED else "cuda"):
        return f"runs on CUDA and HIP devices, got device {case.device}"
    return None if INTERPRETED else cuda.unusable(case.device)


def _triton_kernels() -> Kernels:
    from gatkernels.backends import triton

    return triton


def _reference(case: Case) -> str | None:
    return None


class Backend(NamedTuple):
    #: None where it can run a case, else the reason why not.
    why_not: Callable[[Case], str | None]
    #: Loads its kernels; None: it has none.
    kernels: Callable[[], Kernels] | None


#: In the order in which "auto" tries them.
_BACKENDS: dict[str, Backend] = {
    "cpu": Backend(_cpu, lambda: compiled.CPU),
    "cuda": Backend(_cuda, lambda: cuda.CUDA),
    "triton": Backend(_triton, _triton_kernels),
    "reference": Backend(_reference, None),
}
BACKENDS = tuple(_BACKENDS)
_loaded: dict[str, Kernels] = {}


def kernels(backend: str) -> Kernels:
    """A backend's kernels, imported on first use."""
    try:
        return _loaded[backend]
    except KeyError:
        load = _BACKENDS[backend].kernels
        if load is None:
            raise ValueError(f"gatkernels: backend '{backend}' has no kernels") from None
        _loaded[backend] = load()
        return _loaded[backend]


def supports(backend: str, case: Case) -> str | None:
    """None where ``backend`` can run ``case``, else the reason why not."""
    return _BACKENDS[backend].why_not(case)


def select(op: str, backend: str, case: Case) -> str:
    """The backend to run ``case`` on. An explicit choice never falls back; "auto" may."""
    if backend == "auto":
        return next(name for name in BACKENDS if supports(name, case) is None)
    if backend not in _BACKENDS:
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
    return "none" if native.cpu_missing else str(native.cpu_module().isa)


__all__ = [
    "BACKENDS",
    "INTERPRETED",
    "BackendUnavailable",
    "Case",
    "explain",
    "isa",
    "kernels",
    "select",
    "supports",
]
