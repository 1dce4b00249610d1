"""Our layers beside PyG's: made from one seed, run on one input, compared in every result."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from gatkernels.layers.dropin import fallbacks

pyg = pytest.importorskip("torch_geometric.nn", reason="compares with PyG's layers")

import gatkernels.pyg as fused  # noqa: E402

NODES = 20
CLASSES = ["GATConv", "GATv2Conv"]
CLOSE: dict[torch.dtype, dict[str, float]] = {
    torch.float32: {"rtol": 2e-4, "atol": 2e-5},
    torch.float64: {"rtol": 1e-10, "atol": 1e-11},
}

every_class = pytest.mark.parametrize("name", CLASSES)
every_dtype = pytest.mark.parametrize("dtype", list(CLOSE), ids=str)


def some_edges(num_src: int = NODES, num_dst: int = NODES, count: int = 80) -> Tensor:
    """Random edges with loops and parallel ones; the last destination gets none."""
    generator = torch.Generator().manual_seed(2)
    src = torch.randint(0, num_src, (count,), generator=generator)
    dst = torch.randint(0, num_dst - 1, (count,), generator=generator)
    edges = torch.stack([src, dst])
    edges[:, :5] = torch.tensor([[1, 1, 2, 2, 4], [1, 1, 3, 3, 4]])
    return edges


def both(name: str, *args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Any:
    """Ours and PyG's from the same seed; biases are drawn, so that they are not zero."""
    layers = []
    for package in (fused, pyg):
        torch.manual_seed(11)
        layer = getattr(package, name)(*args, **kwargs).to(dtype)
        if layer.bias is not None:
            nn.init.normal_(layer.bias)
        layers.append(layer)
    return layers


class Outcome(NamedTuple):
    out: Tensor
    edges: Any
    alpha: Tensor
    gradients: dict[str, Tensor]


def outcome(layer: Any, x: Any, edges: Any, attr: Tensor | None, options: Any) -> Outcome:
    """Results and gradients, of parameters and inputs, with both outputs in the loss."""
    pair = x if isinstance(x, tuple) else (x, None)
    leaves = [None if t is None else t.detach().requires_grad_() for t in (*pair, attr)]
    given = tuple(leaves[:2]) if isinstance(x, tuple) else leaves[0]
    out, (index, alpha) = layer(given, edges, leaves[2], return_attention_weights=True, **options)
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (out, alpha)]
    loss = (out * weights[0]).sum() + (alpha * weights[1]).sum()
    named = {f"input {k}": t for k, t in enumerate(leaves) if t is not None}
    named |= dict(layer.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    gradients = {k: torch.zeros_like(t) if g is None else g
                 for (k, t), g in zip(named.items(), found, strict=True)}  # fmt: skip
    return Outcome(out, index, alpha, gradients)


def assert_like_pyg(
    layers: Any, x: Any, edges: Any, attr: Tensor | None = None, **options: Any
) -> None:
    ours, theirs = layers
    # torch differentiates a selection by int32 ids wrongly, so PyG gets int64 ones
    expected = outcome(
        theirs, x, edges.long() if edges.dtype == torch.int32 else edges, attr, options
    )
    got = outcome(ours, x, edges, attr, options)
    close = CLOSE[expected.out.dtype]
    torch.testing.assert_close(got.out, expected.out, **close)
    torch.testing.assert_close(got.alpha, expected.alpha, **close)
    assert type(got.edges) is type(expected.edges)
    if expected.edges.layout == torch.strided:
        assert torch.equal(got.edges, expected.edges)
    else:
        torch.testing.assert_close(got.edges, expected.edges, **close)
    assert got.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(
            got.gradients[name], gradient, **close, msg=lambda m, n=name: f"gradient of {n}: {m}"
        )
    torch.testing.assert_close(ours(x, edges, attr, **options), expected.out, **close)
    assert not fallbacks(ours)


def assert_falls_back(
    layers: Any, reason: str, x: Any, edges: Any, *args: Any, **options: Any
) -> None:
    """PyG's result to the bit, and the reason is counted."""
    ours, theirs = layers
    assert torch.equal(ours(x, edges, *args, **options), theirs(x, edges, *args, **options))
    assert fallbacks(ours) == {reason: 1}


def assert_raises_as_pyg(layers: Any, *args: Any, **options: Any) -> None:
    ours, theirs = layers
    with pytest.raises(Exception) as expected:  # noqa: PT011
        theirs(*args, **options)
    with pytest.raises(type(expected.value)) as got:
        ours(*args, **options)
    assert str(got.value) == str(expected.value)


class Network(nn.Module):
    def __init__(self, package: Any, name: str) -> None:
        super().__init__()
        self.first = getattr(package, name)(6, 4, 2)
        self.second = getattr(package, name)(8, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        return self.second(self.first(x, edge_index).relu(), edge_index)
