"""What the fused path leaves to PyG's own code: other computations, and errors."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from pyg_parity import (
    NODES,
    Network,
    assert_falls_back,
    assert_like_pyg,
    assert_raises_as_pyg,
    both,
    every_class,
    fused,
    pyg,
    some_edges,
)
from torch import Tensor, nn
from torch_geometric import explain

from gatkernels.layers.dropin import fallbacks


@every_class
@pytest.mark.parametrize("aggr", ["mean", "max"])
def test_other_aggregations_run_pygs_code(name: str, aggr: str) -> None:
    layers = both(name, 6, 5, 2, aggr=aggr)
    assert_falls_back(layers, f"aggr='{aggr}'", torch.randn(NODES, 6), some_edges())


def test_decomposed_layers_run_pygs_code() -> None:
    layers = both("GATConv", 6, 4, 2, decomposed_layers=2)
    assert layers[0].why_not(layers[0]) == "decomposed_layers=2"
    # which cannot do it for this layer
    assert_raises_as_pyg(layers, torch.randn(NODES, 6), some_edges())


HOOKS = ["propagate_forward_pre", "propagate_forward", "message_forward_pre", "message_forward",
         "aggregate_forward_pre", "aggregate_forward", "edge_update_forward_pre",
         "edge_update_forward"]  # fmt: skip


@every_class
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_are_called_by_pygs_code(name: str, hook: str) -> None:
    layers = both(name, 6, 5, 2)
    calls: list[int] = []
    for layer in layers:
        getattr(layer, f"register_{hook}_hook")(lambda *_: calls.append(1))
    why = "message passing hooks are registered"
    assert_falls_back(layers, why, torch.randn(NODES, 6), some_edges())
    assert len(calls) == 2


@every_class
def test_overridden_methods_are_called(name: str) -> None:
    def message(self: Any, x_j: Tensor, alpha: Tensor) -> Tensor:
        return 2 * alpha.unsqueeze(-1) * x_j

    mine_class = type(f"My{name}", (getattr(fused, name),), {"message": message})
    ours, theirs = both(name, 6, 5, 2, bias=False)
    mine = mine_class(6, 5, 2, bias=False)
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(NODES, 6)
    expected = theirs(x, some_edges())
    torch.testing.assert_close(mine(x, some_edges()), 2 * expected)
    ours.message = lambda x_j, alpha: 2 * alpha.unsqueeze(-1) * x_j
    torch.testing.assert_close(ours(x, some_edges()), 2 * expected)


@every_class
def test_explainers_give_pygs_explanations(name: str) -> None:
    masks = []
    for package in (fused, pyg):
        torch.manual_seed(5)
        model = Network(package, name).eval()
        x = torch.randn(NODES, 6)
        for algorithm in (explain.GNNExplainer(epochs=3), explain.AttentionExplainer()):
            node_mask = "attributes" if isinstance(algorithm, explain.GNNExplainer) else None
            explainer = explain.Explainer(
                model,
                algorithm,
                explanation_type="model",
                node_mask_type=node_mask,
                edge_mask_type="object",
                model_config={
                    "mode": "multiclass_classification",
                    "task_level": "node",
                    "return_type": "raw",
                },
            )
            torch.manual_seed(6)
            masks.append(explainer(x, some_edges(), index=3).edge_mask)
        assert not model.first.explain
    for got, expected in zip(masks[:2], masks[2:], strict=True):
        assert float(expected.max()) > 0.0
        torch.testing.assert_close(got, expected)


@every_class
def test_torch_func_runs_pygs_code(name: str) -> None:
    ours, theirs = both(name, 6, 5, 2)
    x, edges = torch.randn(NODES, 6), some_edges()

    def loss(layer: Any) -> Any:
        def of(parameters: dict[str, Tensor]) -> Tensor:
            out: Tensor = torch.func.functional_call(layer, parameters, (x, edges))
            return out.square().sum()

        return torch.func.grad(of)(dict(layer.named_parameters()))

    for got, expected in zip(loss(ours).values(), loss(theirs).values(), strict=True):
        torch.testing.assert_close(got, expected)
    tangent = torch.randn(NODES, 6)
    for layer in (ours, theirs):
        _, forward_mode = torch.func.jvp(lambda v, f=layer: f(v, edges), (x,), (tangent,))
        assert bool(forward_mode.isfinite().all())
    reason = "torch.func transforms or forward-mode differentiation"
    assert fallbacks(ours) == {reason: 2}


@every_class
@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("bad", [-1, NODES])
@pytest.mark.parametrize("side", [0, 1])
def test_bad_ids_raise_pygs_error(name: str, loops: bool, bad: int, side: int) -> None:
    edges = some_edges()
    edges[side, 7] = bad
    layers = both(name, 6, 5, add_self_loops=loops)
    assert_raises_as_pyg(layers, torch.randn(NODES, 6), edges)


def test_a_removed_loop_may_have_any_id() -> None:
    edges = some_edges()
    edges[:, 7] = NODES + 3
    ours, theirs = both("GATConv", 6, 5)
    x = torch.randn(NODES, 6)
    torch.testing.assert_close(ours(x, edges), theirs(x, edges))


@every_class
def test_wrong_inputs_raise_pygs_error(name: str) -> None:
    layers = both(name, 6, 5, edge_dim=3)
    x, edges, attr = torch.randn(NODES, 6), some_edges(), torch.randn(80, 3)
    assert_raises_as_pyg(layers, torch.randn(2, NODES, 6), edges)
    assert_raises_as_pyg(layers, torch.randn(NODES, 7), edges)
    assert_raises_as_pyg(layers, x.double(), edges)
    assert_raises_as_pyg(layers, x, edges.float())
    assert_raises_as_pyg(layers, x, edges.flatten())
    assert_raises_as_pyg(layers, x, "edges")
    assert_raises_as_pyg(layers, x, edges, attr[:70])
    assert_raises_as_pyg(layers, x, edges, attr.double())


def test_no_destination_features_for_gatv2() -> None:
    assert_raises_as_pyg(both("GATv2Conv", 6, 5), (torch.randn(NODES, 6), None), some_edges())


@every_class
def test_hooks_and_replacements_of_the_projection_act(name: str) -> None:
    """An adapter, a parametrisation or a hook on the projection is part of the layer."""
    x = torch.randn(NODES, 6)
    layers = both(name, 6, 5, 2)
    for layer in layers:
        lin = layer.lin if name == "GATConv" else layer.lin_l
        nn.utils.parametrizations.weight_norm(lin)
        lin.register_forward_hook(lambda _, inputs, out: 3 * out)
    assert_like_pyg(layers, x, some_edges())


@every_class
def test_traces_follow_the_edges_they_are_given(name: str) -> None:
    ours, _ = both(name, 6, 5, 2)
    x, edges = torch.randn(NODES, 6), some_edges()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        traced = torch.jit.trace(ours, (x, edges))
    torch.testing.assert_close(traced(x, edges[:, 30:]), ours(x, edges[:, 30:]))


@every_class
def test_exports(name: str) -> None:
    ours, _ = both(name, 6, 5, 2)
    x, edges = torch.randn(NODES, 6), some_edges()
    program = torch.export.export(ours.eval(), (x, edges))
    torch.testing.assert_close(program.module()(x, edges), ours(x, edges))
    assert not fallbacks(ours)
