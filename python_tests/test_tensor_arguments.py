"""How the compiled module reads tensors: by torch's table of functions, or by their methods."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gatkernels.backends import native

pytestmark = pytest.mark.skipif(native.cpu_missing is not None, reason=str(native.cpu_missing))

SCRIPT = """
import sys
import torch

if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    if sys.argv[1] == "methods":  # as in older torch
        del torch.Tensor.__dlpack_c_exchange_api__
    else:  # whoever asks it raises
        torch.Tensor.data_ptr = None
import gatkernels
from gatkernels.backends import native

generator = torch.Generator().manual_seed(0)
def randn(*size):
    return torch.randn(*size, generator=generator)

graph = gatkernels.Graph.from_edge_index(torch.randint(0, 7, (2, 20), generator=generator), 7)
rows = [randn(7, 2, 9)[:, :, :5].requires_grad_() for _ in range(3)]  # not contiguous
wide = [t.requires_grad_() for t in randn(7, 6, 5).split(2, 1)]  # rows apart
scores, edge_score = randn(7, 4).split(2, 1), randn(20, 2)
edge, edge_query, att = randn(20, 3), randn(7, 2, 3), randn(2, 5)
found = []
for a, b, c in (rows, wide):
    for out in (
        gatkernels.gat_attention(graph, a, *scores, edge_score),
        gatkernels.gatv2_attention(graph, a, b, att, randn(20, 2, 5)),
        *gatkernels.dot_attention(graph, a, b, c, edge, edge_query),
    ):
        found += [out.detach(), *torch.autograd.grad(out.square().sum(), (a, b, c),
                                                     allow_unused=True, retain_graph=True)]
module = native.cpu_module()
for wrong in (1.0, object()):
    try:
        module.sparse_product(0, 1, wrong, wrong, None, 0, 0, wrong, wrong, wrong)
    except (TypeError, RuntimeError) as error:  # never memory that is none
        found.append(True)
torch.save(found, sys.argv[2])
"""


def test_by_methods_as_by_the_table(tmp_path: Path) -> None:
    found = []
    for how in ("table", "methods"):
        path = tmp_path / how
        subprocess.run([sys.executable, "-c", SCRIPT, how, path], check=True, timeout=120)
        found.append(torch.load(path))
    assert len(found[0]) == len(found[1]) == 34
    for table, methods in zip(*found, strict=True):
        if isinstance(table, torch.Tensor):
            assert torch.equal(table, methods)
        else:
            assert table is methods
