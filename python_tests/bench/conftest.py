"""No warm-up, few samples, and a cache of each test's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gatkernels.bench import measure, process, run


@pytest.fixture(autouse=True)
def quick_and_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No warm-up, few samples, and a cache of the test's own."""
    monkeypatch.setenv("GATKERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measure, "WARM", 0.0)
    monkeypatch.setattr(measure, "TURNS", 2)
    monkeypatch.setattr(measure, "CACHE_BYTES", 2**15)
    monkeypatch.setattr(os, "sysconf", no_cache_size)
    monkeypatch.setattr(run, "copy_bandwidth", lambda device: 1e10)


SYSCONF = os.sysconf


def no_cache_size(name: str) -> int:
    return 0 if name == "SC_LEVEL3_CACHE_SIZE" else SYSCONF(name)


def here(work: Callable[..., Any], *arguments: Any, tick: process.Tick, **_: Any) -> Any:
    """`process.call` without the process."""
    try:
        return work(*arguments, tick)
    except Exception as error:
        raise process.failure(error) from error


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "call", here)
