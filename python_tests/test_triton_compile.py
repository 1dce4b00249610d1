"""The Triton kernels' machine code, for GPUs that need not be there."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux only)"
)

#: Every kernel for every target; on one target each kind of shape, dtype and option.
TARGETS = {
    "cuda:80": ("wide", "many warps"),
    "cuda:90": ("wide", "everything", "float64"),
    "cuda:100": ("wide", "bfloat16"),
    "hip:gfx942": ("wide", "odd"),
}
KERNELS = {
    "separable.forward", "separable.merge", "separable.alpha",
    "separable_backward.prologue", "separable_backward.backward", "separable_backward.merge",
    "node_scores.scores", "node_scores.gradients",
    "rowwise.forward", "rowwise.alpha",
    "rowwise_backward.prologue", "rowwise_backward.by_destination", "rowwise_backward.by_source",
    "rowwise_backward.merge",
    "dot.forward", "dot.alpha",
    "dot_backward.prologue", "dot_backward.by_destination", "dot_backward.by_source",
    "dot_backward.merge",
}  # fmt: skip


Reports = list[dict[str, Any]]


def compile_case(target: str, case: str, cache: Path) -> Reports:
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    script = Path(__file__).with_name("triton_aot.py")
    command = [sys.executable, str(script), target, case]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("target", TARGETS)
def test_machine_code(target: str, tmp_path: Path) -> None:
    """All that is looked for, in one test: a target takes up to a minute to compile for."""
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda case: compile_case(target, case, tmp_path / case), TARGETS[target])
    reports = [report for reports in found for report in reports]
    assert {report["kernel"] for report in reports} == KERNELS
    assert not [(r["case"], r["kernel"], r["spills"]) for r in reports if r["spills"]]
    assert not narrow_loads(reports)
    checked = [report for report in reports if "narrow_products" in report]
    assert checked
    assert not [(r["kernel"], r["narrow_products"]) for r in checked if r["narrow_products"]]


def narrow_loads(reports: Reports) -> list[tuple[str, str, float]]:
    """Kernels that gather with fewer loads of 16 bytes than a thread needs for its part of D rows;
    not where C is odd."""
    return [
        (report["case"], report["kernel"], report["wide_loads"])
        for report in reports
        if report["gathers"] and report["case"] != "odd"
        if report["wide_loads"] < max(1.0, report["row_bytes_per_thread"] / 16)
    ]
