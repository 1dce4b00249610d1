"""Attention over shards: the bits of one process, whatever the ranks and the partition."""

from __future__ import annotations

import itertools

import cases
import pytest
import torch
import worlds
from cases import Case
from tolerance import BACKEND

WAYS = {
    "range": {"partition": "range", "exchange": "halo"},
    "heads": {"partition": "range", "exchange": "heads"},
}
CASES = [
    Case(name, torch.float32, dropout=dropout, edges=more, attention=more, self_loops=loops)
    for name, dropout, more, loops in itertools.product(
        cases.INPUTS, (0.0, 0.5), (False, True), (False, True)
    )
]
CASES += [
    Case(name, dtype, dropout=0.5)
    for name in cases.INPUTS
    for dtype in (torch.float64, torch.bfloat16)
]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_ranks_make_the_bits_of_one_process(ranks: int) -> None:
    ways = {**WAYS, "owners": {"partition": cases.owners(ranks), "exchange": "halo"}}
    found = worlds.run(ranks, cases.on_shards, CASES, ways, BACKEND)
    for case in CASES:
        expected = cases.in_one_process(case, BACKEND)
        for way in ways:
            whole = cases.together(case, [one[way, case] for one in found])
            assert whole.keys() == expected.keys()
            for name, value in expected.items():
                message = f"{name} of {case} by {way} on {ranks} ranks"
                if cases.kind_of(case, name) == "weights" or way == "heads":
                    close = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1}[
                        case.dtype
                    ]
                    torch.testing.assert_close(
                        whole[name].double(),
                        value.double(),
                        rtol=close,
                        atol=close,
                        msg=lambda m: f"{message}: {m}",
                    )
                else:
                    assert torch.equal(whole[name], value), message
