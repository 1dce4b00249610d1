"""Fixtures of all tests: poisoned fresh memory, and hypothesis that repeats itself in CI."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

# Threads that spin while others compute make a busy machine ten times slower; read once, by torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from hypothesis import settings
from torch import Tensor

settings.register_profile(
    "gatkernels",
    deadline=None,
    database=None,
    max_examples=60,
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("gatkernels")


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
