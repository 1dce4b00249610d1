"""Statistics of learned attention: entropy, likeness of heads, preference for like neighbours."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Attention:
    """Attention of one layer: edge ``e`` goes from ``src[e]`` to ``dst[e]``, self loops included.

    ``edge_index`` is ``[2, E]`` int64, ``alpha`` ``[E, H]`` without dropout: for each head it sums
    to 1 over the edges into a node.
    """

    edge_index: Tensor
    alpha: Tensor
    num_nodes: int

    @property
    def src(self) -> Tensor:
        return self.edge_index[0]

    @property
    def dst(self) -> Tensor:
        return self.edge_index[1]

    @property
    def heads(self) -> int:
        return self.alpha.shape[1]

    def degrees(self) -> Tensor:
        """Edges into each node, self loops included, ``[N]`` int64."""
        return torch.bincount(self.dst, minlength=self.num_nodes)

    def relative(self) -> Tensor:
        """Attention over what uniform attention would give, ``alpha_e * degree``, ``[E, H]``."""
        return self.alpha * self.degrees()[self.dst, None]

    def sum_rows(self, values: Tensor) -> Tensor:
        """Sums of ``values [E, ...]`` over the edges into each node, float64 ``[N, ...]``."""
        total = torch.zeros(self.num_nodes, *values.shape[1:], dtype=torch.float64)
        return total.index_add(0, self.dst, values.double())


@dataclass(frozen=True)
class Layer:
    """What one attention layer did in a forward pass: its input ``[N, F]`` and its attention."""

    module: nn.Module
    inputs: Any
    attention: Attention


#: DGL's layers that return ``(out, alpha [E, H, 1])``.
_OF_DGL = ("GATConv", "GATv2Conv", "EdgeGATConv")


def _question(module: nn.Module) -> str | None:
    """The argument of its forward that asks for attention, if it has one."""
    if "return_attention_weights" in inspect.signature(module.forward).parameters:
        return "return_attention_weights"
    kinds = type(module).__mro__
    if any(k.__name__ in _OF_DGL and k.__module__.startswith("dgl.nn.") for k in kinds):
        return "get_attention"
    return None


@torch.no_grad()
def watch(model: nn.Module, *inputs: Any) -> tuple[Any, list[Layer]]:
    """Run ``model(*inputs)`` without dropout; return its output and its attention layers, if any.

    Those are gatkernels' layers, PyG's with an ``edge_index`` or a Graph, and DGL's, whether
    :func:`gatkernels.accelerate` has swapped them or not. Fused, their attention comes out of the
    same pass. An output that is a tensor is returned on the CPU.
    """
    layers: list[Layer] = []

    def watch_layer(module: nn.Module, question: str) -> None:
        signature = inspect.signature(module.forward)
        asked_before: list[Any] = []

        def ask(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            given = signature.bind(*args, **kwargs)
            asked_before.append(given.arguments.get(question))
            given.arguments[question] = True
            return given.args, given.kwargs

        def take(module: nn.Module, args: Any, kwargs: dict[str, Any], result: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            if question == "get_attention":
                (out, alpha), x = result, given["feat"]
                edge_index, alpha = torch.stack(given["graph"].edges(order="eid")), alpha[..., 0]
            else:
                (out, (edge_index, alpha)), x = result, next(iter(given.values()))
            found = Attention(edge_index.long().cpu(), alpha.detach().cpu(), out.shape[0])
            layers.append(Layer(module, x, found))
            return result if asked_before.pop() else out

        hooks.enter_context(module.register_forward_pre_hook(ask, with_kwargs=True))
        hooks.enter_context(module.register_forward_hook(take, with_kwargs=True))

    was_training = model.training
    with ExitStack() as hooks:
        for module in model.modules():
            question = _question(module)
            if question is not None:
                watch_layer(module, question)
        model.eval()
        try:
            output = model(*inputs)
        finally:
            model.train(was_training)
    return output.cpu() if isinstance(output, Tensor) else output, layers


def entropy(attention: Attention) -> Tensor:
    """Entropy in bits of every node's attention per head, ``[N, H]``; 0 without edges.

    Between 0 (all attention on one edge) and :func:`uniform_entropy`.
    """
    alpha = attention.alpha.double()
    return attention.sum_rows(-torch.xlogy(alpha, alpha)) / torch.log(torch.tensor(2.0))


def uniform_entropy(attention: Attention) -> Tensor:
    """Entropy in bits of uniform attention over the same edges, ``log2(degree)``, ``[N]``."""
    return attention.degrees().clamp(min=1).double().log2()


def overlap(columns: Tensor, attention: Attention) -> Tensor:
    """Share of attention that each two columns of ``[E, K]`` spend alike, ``[K, K]``.

    For one node ``sum_e min(alpha_e, beta_e)``: 1 where both spread their attention in the same
    way, 0 where they look at different neighbours. Averaged over the nodes with a choice, those
    with two edges or more; nan where there are none.
    """
    chooses = attention.degrees() >= 2
    columns = columns[chooses[attention.dst]].double()
    rows = [torch.minimum(columns[:, k, None], columns).sum(0) for k in range(columns.shape[1])]
    return torch.stack(rows) / chooses.sum()


def with_uniform(attentions: Sequence[Attention]) -> Tensor:
    """All heads of layers with the same edges, and uniform attention last, ``[E, K + 1]``."""
    first = attentions[0]
    uniform = 1.0 / first.degrees()[first.dst].double()
    return torch.cat([*(layer.alpha.double() for layer in attentions), uniform[:, None]], dim=1)


def likeness(labels: Tensor, edge_index: Tensor) -> Tensor:
    """How alike the ends of each edge are, float64 ``[E]``.

    1 or 0 for one class per node (``labels [N]``); for many (``[N, L]`` of 0 and 1) the labels in
    common over the labels of either (Jaccard), 1 where neither end has any.
    """
    src, dst = labels[edge_index[0]], labels[edge_index[1]]
    if labels.dim() == 1:
        return (src == dst).double()
    either = ((src > 0) | (dst > 0)).sum(1).double()
    both = ((src > 0) & (dst > 0)).sum(1).double()
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


@dataclass(frozen=True)
class Homophily:
    """Mean likeness of neighbours under attention and under uniform weights.

    Over the ``nodes`` whose neighbours differ in likeness, their own self loop left out. ``error``
    is the half width of the 95 % interval of the mean of the differences between the two.
    """

    attention: Tensor  # [H]
    uniform: float
    error: Tensor  # [H]
    nodes: int


def homophily(attention: Attention, labels: Tensor) -> Homophily:
    """Does attention prefer neighbours of the same class (or with the same labels)?

    Nodes whose neighbours are all equally like them have no choice and are left out; so are nodes
    whose attention lies on their self loop alone.
    """
    alike = likeness(labels, attention.edge_index)[:, None]
    other = (attention.src != attention.dst).double()[:, None]
    alpha = attention.alpha.double() * other
    weight, count = attention.sum_rows(alpha), attention.sum_rows(other)
    square, plain = attention.sum_rows(other * alike**2), attention.sum_rows(other * alike)
    spread = square[:, 0] / count[:, 0] - (plain[:, 0] / count[:, 0]) ** 2
    chosen = (spread > 1e-9) & (weight > 0).all(1)  # nan, without neighbours, is not above
    nodes = int(chosen.sum())
    learned = (attention.sum_rows(alpha * alike)[chosen] / weight[chosen]).T  # [H, nodes]
    uniform = (plain[chosen] / count[chosen]).T  # [1, nodes]
    if nodes < 2:
        nothing = torch.full((attention.heads,), float("nan"), dtype=torch.float64)
        return Homophily(nothing, float("nan"), nothing, nodes)
    error = 1.96 * (learned - uniform).std(1) / nodes**0.5
    return Homophily(learned.mean(1), float(uniform.mean()), error, nodes)
