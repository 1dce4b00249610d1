"""The soak runs every layer, and says what stays."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_a_short_soak(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch_geometric")
    spec = importlib.util.spec_from_file_location("soak", ROOT / "bench" / "soak.py")
    assert spec is not None
    assert spec.loader is not None
    soak = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(soak)
    steps, layers = soak.steps_of_layers()
    assert len(steps) == len(layers) + 1 >= 7
    assert soak.main(["--steps", str(10 * len(steps))]) in (0, 1)  # too short to settle
    out = capsys.readouterr().out
    assert f"{10 * len(steps)} steps of {len(steps)} layers" in out
    assert "growth since the second tenth" in out
