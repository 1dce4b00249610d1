"""The Triton kernels' machine code, for GPUs that need not be there."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
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
    "gat.forward", "gat.merge", "gat.alpha",
    "gat_backward.prologue", "gat_backward.backward", "gat_backward.merge",
    "gatv2.forward", "gatv2.alpha",
    "gatv2_backward.prologue", "gatv2_backward.by_destination", "gatv2_backward.by_source",
    "gatv2_backward.merge",
}  # fmt: skip


#: One worker of a test run compiles a target.
targets = pytest.mark.parametrize(
    "target", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in TARGETS]
)
Reports = list[dict[str, Any]]
Compiled = Callable[[str], Reports]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """What the kernels compiled to, for a target; compiled when the first test asks."""

    def compile_case(target: str, case: str) -> Reports:
        cache = tmp_path_factory.mktemp("cache")
        env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
        script = Path(__file__).with_name("triton_aot.py")
        command = [sys.executable, str(script), target, case]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    @functools.cache
    def compile_for(target: str) -> Reports:
        with ThreadPoolExecutor(2) as pool:
            found = pool.map(functools.partial(compile_case, target), TARGETS[target])
        return [report for reports in found for report in reports]

    return compile_for


@targets
def test_every_kernel_compiles_without_spills(target: str, compiled: Compiled) -> None:
    assert {report["kernel"] for report in compiled(target)} == KERNELS
    spilled = [(r["case"], r["kernel"], r["spills"]) for r in compiled(target) if r["spills"]]
    assert not spilled


@targets
def test_rows_are_loaded_in_16_bytes(target: str, compiled: Compiled) -> None:
    """As many such loads as a thread needs for its part of D rows; not where C is odd."""
    narrow = [
        (report["case"], report["kernel"], report["wide_loads"])
        for report in compiled(target)
        if report["gathers"] and report["case"] != "odd"
        if report["wide_loads"] < max(1.0, report["row_bytes_per_thread"] / 16)
    ]
    assert not narrow


@targets
def test_addresses_are_computed_in_64_bits(target: str, compiled: Compiled) -> None:
    checked = [report for report in compiled(target) if "narrow_products" in report]
    assert checked
    assert not [(r["kernel"], r["narrow_products"]) for r in checked if r["narrow_products"]]
