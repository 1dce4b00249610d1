"""Graphs, and DGL's layers beside ours in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gatkernels.bench.peers import import_failure
from gatkernels.layers.dropin import fallbacks

if failure := import_failure("dgl.nn.pytorch"):
    pytest.skip(failure, allow_module_level=True)

import dgl
import dgl.nn.pytorch as theirs

import gatkernels.dgl as ours

LAYERS = ("GATConv", "GATv2Conv", "EdgeGATConv")
DTYPES = (torch.float32, torch.float64)
EDGE_FEATS = 6
H, C = 3, 4


def homogeneous(idtype: torch.dtype = torch.int64) -> Any:
    """20 nodes, parallel edges and loops among 100 edges, none into node 19."""
    generator = torch.Generator().manual_seed(1)
    src = torch.randint(0, 20, (100,), generator=generator)
    dst = torch.randint(0, 19, (100,), generator=generator)
    src[:3], dst[:3] = torch.tensor([4, 4, 5]), torch.tensor([7, 7, 5])
    return dgl.graph((src, dst), num_nodes=20, idtype=idtype)


def bipartite(idtype: torch.dtype = torch.int64) -> Any:
    generator = torch.Generator().manual_seed(2)
    src = torch.randint(0, 9, (40,), generator=generator)
    dst = torch.randint(0, 12, (40,), generator=generator)
    return dgl.heterograph(
        {("user", "plays", "game"): (src, dst)}, {"user": 9, "game": 14}, idtype=idtype
    )


def block(idtype: torch.dtype = torch.int64) -> Any:
    seeds = torch.tensor([3, 1, 8], dtype=idtype)
    return dgl.to_block(dgl.in_subgraph(homogeneous(idtype), seeds), seeds)


def looped() -> Any:
    return dgl.add_self_loop(homogeneous())


def randn(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)


def pair(name: str, in_feats: Any, *sizes: int, **options: Any) -> tuple[Any, Any]:
    """Our layer and DGL's, each made from the same seed, with biases that are not zero."""
    options.setdefault("allow_zero_in_degree", True)
    sizes = sizes or (C, H)
    if name == "EdgeGATConv":
        sizes = (EDGE_FEATS, *sizes)
    layers = []
    for module in (ours, theirs):
        torch.manual_seed(11)
        layer = getattr(module, name)(in_feats, *sizes, **options)
        for key, value in layer.named_parameters():
            if "bias" in key:
                nn.init.constant_(value, 0.3)
        layers.append(layer)
    return layers[0], layers[1]


def extras(name: str, graph: Any, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """What the layer takes beside the features."""
    return (randn(graph.num_edges(), EDGE_FEATS, dtype=dtype),) if name == "EdgeGATConv" else ()


def outcome(layer: Any, graph: Any, feat: Any, *rest: Tensor) -> dict[str, Tensor]:
    """Output, attention, and the gradients of every input and parameter, both in the loss."""
    given = feat if isinstance(feat, tuple) else (feat,)
    inputs = [t.clone().requires_grad_() for t in given]
    more = [t.clone().requires_grad_() for t in rest]
    feat = tuple(inputs) if isinstance(feat, tuple) else inputs[0]
    out, alpha = layer(graph, feat, *more, get_attention=True)
    loss = (out * randn(*out.shape, dtype=out.dtype)).sum()
    loss = loss + (alpha * randn(*alpha.shape, dtype=out.dtype)).sum()
    leaves = {f"input {k}": t for k, t in enumerate(inputs + more)}
    leaves |= dict(layer.named_parameters())
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    gradients = {
        k: torch.zeros_like(t) if g is None else g
        for (k, t), g in zip(leaves.items(), found, strict=True)
    }
    return {"out": out, "alpha": alpha} | gradients


def assert_same(
    mine: Any, other: Any, graph: Any, feat: Any, *rest: Tensor, scale: float = 1.0
) -> None:
    """Every result is DGL's up to rounding of values of size ``scale``; no call fell back."""
    state, expected_state = mine.state_dict(), other.state_dict()
    assert list(state) == list(expected_state)
    assert all(torch.equal(state[k], expected_state[k]) for k in state)
    got, expected = outcome(mine, graph, feat, *rest), outcome(other, graph, feat, *rest)
    for key, value in expected.items():
        small = value.dtype == torch.float32
        close = {"rtol": 1e-4, "atol": 2e-5} if small else {"rtol": 1e-10, "atol": 1e-11 * scale}
        torch.testing.assert_close(got[key], value, **close, msg=lambda m, k=key: f"{k}: {m}")
    assert not fallbacks(mine)


def assert_falls_back(layer: Any, why: str, call: Callable[[Any], Any], other: Any) -> None:
    """The call runs DGL's code, with its result, and is counted."""
    torch.manual_seed(5)
    expected = call(other)
    torch.manual_seed(5)
    got = call(layer)
    torch.testing.assert_close(got, expected, rtol=0.0, atol=0.0, equal_nan=True)
    assert [why in reason for reason in fallbacks(layer)] == [True]
