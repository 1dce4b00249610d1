"""Dropout: Philox4x32-10, one mask for every backend, ruled by torch's generator."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from graphs import DEVICE, GRAPHS, random_inputs
from tolerance import BACKEND
from torch import Tensor

from gatkernels import Graph, gat_attention, reference
from gatkernels.ops import autograd
from gatkernels.ops.autograd import Options
from gatkernels.ops.call import GatInputs

#: Known answers of philox4x32-10 (kat_vectors of Random123): counter, key, words.
KNOWN = {
    "zeros": ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}
SEEDS = (0, 1, -1, 0x0123_4567_89AB_CDEF, -(2**63))
#: Where the state lies of the generator that a call on DEVICE draws from.
RNG: Any = torch if DEVICE.type == "cpu" else torch.cuda


def _wide(low: int, high: int) -> Tensor:
    """Two 32-bit words as the int64 of the same bits."""
    value = low | high << 32
    return torch.tensor([value - 2**64 if value >= 2**63 else value])


@pytest.mark.parametrize("name", KNOWN)
def test_known_answers(name: str) -> None:
    counter, key, expected = KNOWN[name]
    words = reference.philox(_wide(*key), _wide(*counter[:2]), _wide(*counter[2:]))
    assert tuple(int(word) for word in words) == expected


def _kernel_keeps(graph: Graph, heads: int, dropout: float, seed: Tensor) -> Tensor:
    """Where the kernel kept an edge, ``[E, H]``, read off its attention."""
    x = torch.zeros(graph.num_src, heads, 1, device=DEVICE)
    score_dst = torch.zeros(graph.num_dst, heads, device=DEVICE)
    given = GatInputs(x, x[..., 0], score_dst, None, None, None)
    how = Options(0.2, dropout, True, BACKEND)
    _, alpha = autograd.attend("gat", graph, given, how, seed.to(DEVICE))
    assert alpha is not None
    return (alpha != 0).cpu()


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33])
@pytest.mark.parametrize("name", ["random", "hub_block"])
def test_kernel_draws_the_mask_of_the_reference(heads: int, name: str) -> None:
    graph = GRAPHS[name]()
    for seed in SEEDS:
        key = torch.tensor([seed])
        expected = reference.dropout_scale(graph.num_edges, heads, 0.6, key) != 0
        assert torch.equal(_kernel_keeps(graph, heads, 0.6, key), expected), seed


@pytest.mark.parametrize("threads", [1, 2])
def test_kernel_mask_of_split_rows(threads: int) -> None:
    graph = GRAPHS["hub_chunks"]()
    key = torch.tensor([SEEDS[3]])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        keeps = _kernel_keeps(graph, 3, 0.3, key)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(keeps, reference.dropout_scale(graph.num_edges, 3, 0.3, key) != 0)


def test_kept_from_the_threshold_on() -> None:
    """Kept where the word is at least ``p * 2^32``, to the last bit of the word."""
    graph = GRAPHS["one_edge"]()
    key = torch.tensor([42])
    word = int(reference.philox(key, torch.tensor([0]), torch.tensor([0]))[0])
    for numerator, kept in ((word - 1, True), (word, True), (word + 0.5, False), (word + 1, False)):
        dropout = numerator / 2**32
        assert bool(_kernel_keeps(graph, 1, dropout, key)) is kept
        assert bool(reference.dropout_scale(1, 1, dropout, key)) is kept


def test_mask_depends_on_edge_head_and_seed_alone() -> None:
    """Not on the place of an edge in the graph: shuffled edges take their masks along."""
    graph = GRAPHS["random"]()
    few = _kernel_keeps(graph, 2, 0.5, torch.tensor([5]))
    many = _kernel_keeps(graph, 9, 0.5, torch.tensor([5]))
    assert torch.equal(many[:, :2], few)
    other = Graph.from_edge_index(graph.edge_index.flip(0), 40)
    assert torch.equal(_kernel_keeps(other, 9, 0.5, torch.tensor([5])), many)
    assert not torch.equal(_kernel_keeps(graph, 9, 0.5, torch.tensor([6])), many)


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.6, 0.9])
def test_keep_rate(dropout: float) -> None:
    kept = reference.dropout_scale(20_000, 8, dropout, torch.tensor([9])) != 0
    spread = math.sqrt(dropout * (1 - dropout))
    assert abs(float(kept.double().mean()) - (1 - dropout)) < 4 * spread / math.sqrt(kept.numel())
    per_head = kept.double().mean(0) - (1 - dropout)
    assert float(per_head.abs().max()) < 4.5 * spread / math.sqrt(20_000)


def test_scale_keeps_the_expectation() -> None:
    scale = reference.dropout_scale(100, 4, 0.6, torch.tensor([3]))
    assert set(scale.unique().tolist()) == {0.0, 1.0 / (1.0 - 0.6)}


def _draw(backend: str = BACKEND) -> Tensor:
    graph = GRAPHS["random"]()
    inputs = random_inputs(graph, 4, 3, torch.float64)
    return gat_attention(graph, *inputs[:3], dropout=0.5, backend=backend)


def test_manual_seed_rules_the_mask() -> None:
    torch.manual_seed(4)
    first, second = _draw(), _draw()
    assert not torch.equal(first, second)
    torch.manual_seed(4)
    assert torch.equal(_draw(), first)
    torch.manual_seed(5)
    assert not torch.equal(_draw(), first)


def test_saved_generator_state_repeats_the_mask() -> None:
    state = RNG.get_rng_state()
    first, second = _draw(), _draw()
    RNG.set_rng_state(state)
    assert torch.equal(_draw(), first)
    assert torch.equal(_draw(), second)


def test_backends_draw_the_same_mask_and_use_the_generator_alike() -> None:
    results = {}
    for backend in (BACKEND, "reference"):
        torch.manual_seed(8)
        results[backend] = (_draw(backend), torch.rand(3, device=DEVICE))
    for got, expected in zip(results[BACKEND], results["reference"], strict=True):
        torch.testing.assert_close(got, expected)


def test_without_dropout_the_generator_rests() -> None:
    graph = GRAPHS["random"]()
    inputs = random_inputs(graph, 4, 3, torch.float32)
    state = RNG.get_rng_state()
    gat_attention(graph, *inputs[:3], backend=BACKEND)
    assert torch.equal(RNG.get_rng_state(), state)
