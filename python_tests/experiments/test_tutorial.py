"""The tutorial's code runs, from top to bottom; its numbers are those of the committed results."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from gatkernels.experiments.attention import Attention

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "tutorial.md").read_text("utf-8")
RESULTS = json.loads((DOCS / "ppi_attention.json").read_text())


def study():
    spec = importlib.util.spec_from_file_location("ppi_attention", DOCS / "ppi_attention.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_code_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    names = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"tutorial.md, block {number}", "exec"), names)
    assert len(names["left"].patches) == 31
    assert names["right"].get_title(loc="left").startswith("node 0: 3 neighbours")


def test_pictures_are_there_and_small():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT)
    assert len(pictures) == 5
    for picture in pictures:
        content = (DOCS / picture).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) < 200_000


def test_numbers_are_those_of_the_results():
    assert study().markdown(RESULTS) in TEXT
    flawed, exact = RESULTS["micro_f1_global_maximum"], RESULTS["micro_f1"]
    words = " ".join(TEXT.split())
    assert f"falls from {exact:.1%} to {flawed:.1%}".replace("%", " %") in words
    first, second, third = RESULTS["layers"]
    assert f"they lie {first['logit_spread']:.0f} apart" in words
    below = "row_maximum_below_global_median"
    assert f"the median node lies {second[below]:.0f} below" in words
    assert f"in the third {third[below]:.0f}," in words
    assert f"epoch {RESULTS['epoch']} of" in words
    assert max(layer["exact_sum_of_row_off_by"] for layer in RESULTS["layers"]) < 7e-7


def test_the_softmax_with_the_global_maximum_loses_rows():
    """Exact where all rows are near the maximum, nothing left where one lies 110 below."""
    edges = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1]])
    attention = Attention(edges, torch.full((4, 1), 0.5), 2)
    near = torch.tensor([[3.0], [3.0], [1.0], [2.0]])
    sums = attention.sum_rows(study().global_maximum_softmax(near, attention))
    torch.testing.assert_close(sums, torch.ones(2, 1, dtype=torch.float64))
    for below, left in ((36.84, 2 / 3), (110.0, 0.0)):
        far = torch.tensor([[0.0], [0.0], [-below], [-below]])
        sums = attention.sum_rows(study().global_maximum_softmax(far, attention))
        assert sums[:, 0].tolist() == pytest.approx([1.0, left], rel=1e-2, abs=1e-6)
