"""Fixtures of all tests: poisoned fresh memory, and hypothesis that repeats itself in CI."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable
from typing import Any

# Threads that spin while others compute make a busy machine ten times slower; read once, by torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import emulator
import pytest
import torch
from graphs import DEVICE, INTERPRETED
from hypothesis import settings
from tolerance import BACKEND
from torch import Tensor
from torch._dynamo import trace_rules

from gatkernels import backends
from gatkernels.backends import cuda, native, schedule

if BACKEND == "cuda" and DEVICE.type == "cpu":
    cuda.module = emulator.module()
schedule.ORDERED = 200  # graphs with an order of their rows and without, although all are small


def no_such_isa() -> str | None:
    """Where GATKERNELS_ISA asks for what the processor has not got, why nothing can be tested."""
    lacking = "which this processor does not have"
    return native.cpu_missing if lacking in str(native.cpu_missing) else None


def pytest_sessionstart() -> None:
    """Without the backend under test, one line instead of a failure of every test."""
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("GATKERNELS_TEST_DEVICE=cuda: torch.cuda.is_available() is false")
    reason = backends.supports(BACKEND, backends.Case(DEVICE, torch.float32))
    if reason is not None and reason != no_such_isa():
        raise pytest.UsageError(f"GATKERNELS_TEST_BACKEND={BACKEND}: {reason}")


# What the compiler knows of torch's functions, before poisoned ones stand in their places; it would
# look them up anew once a group of processes is made.
_rules = trace_rules.get_torch_obj_rule_map()
trace_rules.get_torch_obj_rule_map = functools.cache(lambda: _rules)

settings.register_profile(
    "gatkernels",
    deadline=None,
    database=None,
    max_examples=60,
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("gatkernels")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With Triton's interpreter, which is slow, thin out the combinations of parameters.

    Every value of every parameter of every test is still run, in combinations that hashes choose.
    """
    if reason := no_such_isa():
        for item in items:
            item.add_marker(pytest.mark.skip(reason=reason))
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    seen: set[tuple[str, str, str]] = set()
    kept: set[str] = set()
    for item in sorted(items, key=lambda item: zlib.crc32(item.nodeid.encode())):
        test, _, _ = item.nodeid.partition("[")
        call = getattr(item, "callspec", None)
        params = call.params.items() if call else [("", "")]
        fresh = {(test, name, repr(value)) for name, value in params} - seen
        if fresh:
            kept.add(item.nodeid)
            seen |= fresh
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in kept])
    items[:] = [item for item in items if item.nodeid in kept]


def poison(tensor: Tensor) -> Tensor:
    """Fill with what no right result holds: NaN, or -1 for node and edge ids."""
    if tensor.is_floating_point():
        tensor.detach().fill_(float("nan"))
    elif tensor.dtype in (torch.int32, torch.int64):
        tensor.fill_(-1)
    return tensor


def _poisoned(create: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrapper(*args: Any, **kwargs: Any) -> Tensor:
        return poison(create(*args, **kwargs))

    return wrapper


def patch_triton_once() -> None:
    """Triton's interpreter replaces all of its language again for each call of one of a kernel's
    functions by another, half of the time it takes; once for the kernel is enough."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    @functools.cache
    def languages(function: Any) -> Any:
        return [lang for lang in function.__globals__.values() if lang is tl or lang is tl.core]

    def once(function: Any) -> Any:
        seen = languages(function)
        fresh = any(tl.core.is_builtin(lang.load) for lang in seen)
        return patch(function) if fresh else interpreter._LangPatchScope()

    interpreter._patch_lang = once


if INTERPRETED:
    patch_triton_once()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that an element no one wrote fails the test."""
    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))
