"""bench/gpu.sh: its stages, with a Python that stands in for one with a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "bench" / "gpu.sh"
STUB = """#!/bin/sh
case "$*" in
  *get_device_capability*) echo "90 h200" ;;
  *"-m pytest"*test_cuda*) exit 1 ;;
esac
"""


def _run(python: str, out: Path, *stages: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHON": python, "OUT": str(out)}
    command = ["bash", str(SCRIPT), *stages]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_a_failing_stage_does_not_hide_nor_stop_the_others(tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    done = _run(str(stub), tmp_path, "build", "suite", "targets")
    assert done.returncode == 1, done.stderr
    table = [line.split() for line in done.stdout.splitlines()[-3:]]
    assert [(row[0], row[-1]) for row in table] == [
        ("build", "passed"), ("suite", "FAILED"), ("targets", "passed"),
    ]  # fmt: skip
    assert "GATKERNELS_CUDA_ARCHS=90" in done.stdout
    assert "python_tests/test_gpu.py" in done.stdout
    assert f"--out {tmp_path}/h200-targets" in done.stdout
    assert (tmp_path / "gpu.log").read_text() == done.stdout


def test_an_unknown_stage(tmp_path: Path) -> None:
    done = _run(sys.executable, tmp_path, "build", "fly")
    assert done.returncode == 2
    assert done.stderr.startswith("gpu.sh: no stage 'fly', but build verify suite")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path: Path) -> None:
    done = _run(sys.executable, tmp_path)
    assert done.returncode == 1
    assert done.stderr == "gpu.sh: no CUDA GPU: torch.cuda.is_available() is false\n"
    assert not list(tmp_path.iterdir())
