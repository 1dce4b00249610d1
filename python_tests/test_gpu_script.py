"""bench/gpu.sh: its stages and deadlines, with a Python that stands in for one with a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "bench" / "gpu.sh"
#: Says what it is called with, so that the log shows it.
STUB = """#!/bin/sh
case "$*" in
  *get_device_capability*) echo "90 h200"; exit ;;
  *gat_attention*) exit 1 ;;
  *bench.smoke*) exit 3 ;;
  *--targets*) echo begun; sleep 60 & wait ;;
esac
"""


def _start(python: str, out: Path, *stages: str, **env: str) -> subprocess.Popen[str]:
    settings = {**os.environ, "PYTHON": python, "OUT": str(out), **env}
    return subprocess.Popen(
        ["bash", str(SCRIPT), *stages], env=settings, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _run(python: str, out: Path, *stages: str, **env: str) -> Any:
    with _start(python, out, *stages, **env) as script:
        stdout, stderr = script.communicate()
    return subprocess.CompletedProcess(stages, script.returncode, stdout, stderr)


@pytest.fixture
def stub(tmp_path: Path) -> str:
    python = tmp_path / "python"
    python.write_text(STUB)
    python.chmod(0o755)
    return str(python)


def test_stages_their_deadlines_and_the_table(stub: str, tmp_path: Path) -> None:
    """Modules that do not run are built; a failure does not end the run, nor does a deadline."""
    done = _run(stub, tmp_path, "quick", SHORTER="100", CUDA_HOME="/nowhere", PATH="/usr/bin:/bin")
    assert done.returncode == 1, done.stderr
    table = [line.split() for line in done.stdout.splitlines()[-4:]]
    assert [(row[0], row[-1]) for row in table] == [
        ("modules", "passed"), ("smoke", "FAILED"), ("targets", "FAILED"), ("profile", "FAILED"),
    ]  # fmt: skip
    assert "GATKERNELS_CUDA_ARCHS=90" in done.stdout
    assert re.search(r"ended after 2 s: .*--targets .*--out " + str(tmp_path), done.stdout)
    assert (tmp_path / "gpu.log").read_text() == done.stdout


def test_an_end_from_outside_ends_what_runs(stub: str, tmp_path: Path) -> None:
    script = _start(stub, tmp_path, "quick")
    log = tmp_path / "gpu.log"
    end = time.monotonic() + 60
    while time.monotonic() < end and not (log.exists() and "begun" in log.read_text()):
        time.sleep(0.1)
    script.terminate()
    begin = time.monotonic()
    script.communicate()  # until all that could write has ended
    assert script.returncode == 143
    assert time.monotonic() - begin < 30


def test_a_kill_leaves_the_log(stub: str, tmp_path: Path) -> None:
    script = _start(stub, tmp_path, "quick")
    log = tmp_path / "gpu.log"
    end = time.monotonic() + 60
    while time.monotonic() < end and not (log.exists() and "begun" in log.read_text()):
        time.sleep(0.1)
    script.kill()
    script.wait()
    for stream in (script.stdout, script.stderr):
        assert stream is not None
        stream.close()
    text = log.read_text()
    assert "== targets ==" in text
    assert re.search(r"^smoke +\d+ s  FAILED$", text, re.M)


def test_the_rest_goes_on_without_a_sanitizer(stub: str, tmp_path: Path) -> None:
    done = _run(stub, tmp_path, "rest", CUDA_HOME="/nowhere", PATH="/usr/bin:/bin")
    assert done.returncode == 1
    assert "GATKERNELS_TEST_BACKEND=triton" in done.stdout
    assert "python_tests/test_gpu.py" in done.stdout
    assert "no compute-sanitizer on PATH or below CUDA_HOME" in done.stdout
    assert [line.split()[-1] for line in done.stdout.splitlines()[-5:]] == [
        "passed", "passed", "passed", "passed", "FAILED",
    ]  # fmt: skip


def test_deadlines_are_within_the_quarter_of_an_hour() -> None:
    """Those of each stage, one after another: 8 minutes for quick without a build, 5 for rest."""
    text = SCRIPT.read_text()

    def seconds(*stages: str) -> int:
        found = []
        for stage in stages:
            body = re.search(rf"^{stage}\(\) {{.*?^}}", text, re.M | re.S)
            assert body is not None
            limits = re.findall(r"^ *(?:run|tests) (\d+) (?!.*cpu)", body[0], re.M)
            turns = re.search(r"for \w+ in ([^;]*);", body[0])  # profiles, checks
            found.append((len(turns[1].split()) if turns else 1) * int(limits[-1]))
        return sum(found)

    assert seconds("smoke", "targets", "profile") <= 8 * 60 - 30
    assert seconds("suite", "triton", "gpu", "sanitize") <= 5 * 60


@pytest.mark.parametrize(("given", "message"), [
    (["fly"], "gpu.sh: no 'fly', but prebuild, quick and rest\n"),
    (["prebuild", "python3"], "gpu.sh: prebuild PYTHON ARCH, such as prebuild python3.12 90\n"),
])  # fmt: skip
def test_what_cannot_be_asked_for(given: list[str], message: str, tmp_path: Path) -> None:
    done = _run(sys.executable, tmp_path, *given)
    assert done.returncode == 2
    assert done.stderr == message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path: Path) -> None:
    done = _run(sys.executable, tmp_path, "quick")
    assert done.returncode == 1
    assert done.stderr == "gpu.sh: no CUDA GPU: torch.cuda.is_available() is false\n"
    assert not list(tmp_path.iterdir())
