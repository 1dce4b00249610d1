"""What a rank holds, as bench/sharded_memory.py weighs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_a_rank_of_four_needs_about_a_third_of_one_process() -> None:
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "bench" / "sharded_memory.py",
            "--nodes",
            "30000",
            "--edges",
            "600000",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    one, four = done.stdout.splitlines()
    built = [int(re.search(r"build ([\d,]+)", line)[1].replace(",", "")) for line in (one, four)]  # type: ignore[index]
    assert built[1] < 1.3 * built[0], done.stdout
    assert float(four.split()[-4]) < 0.42, done.stdout  # 0.34 with 8 M edges
