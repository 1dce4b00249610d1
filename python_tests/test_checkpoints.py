"""Checkpoints of every generation: each old layout's own formula, and layers that must match it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gatkernels
from gatkernels import nn as ours
from gatkernels.bench.peers import import_failure

N, IN, H, C = 6, 5, 3, 4
EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2, 5], [1, 2, 3, 4, 0, 2, 4, 2]])
LOOPED = torch.cat([EDGES, torch.arange(N).expand(2, N)], dim=1)

State = dict[str, Tensor]


def randn(*size: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(*size, generator=generator, dtype=torch.float64)


X = randn(N, IN)


# The formulas, as each library wrote them, edge by edge


def aggregate(score: Callable[[int, int], Tensor], message: Tensor) -> Tensor:
    """Softmax of ``score(i, j) [H]`` over the edges j -> i, sum of ``message[j] [H, C]``."""
    rows = []
    for i in range(N):
        sources = LOOPED[0, LOOPED[1] == i].tolist()
        alpha = torch.stack([score(i, j) for j in sources]).softmax(0)  # [deg, H]
        rows.append((alpha[:, :, None] * message[sources]).sum(0))
    return torch.stack(rows).flatten(1)


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def pyg_1_3(state: State) -> Tensor:
    x = (X @ state["weight"]).view(N, H, C)

    def score(i: int, j: int) -> Tensor:
        return leaky((torch.cat([x[i], x[j]], dim=-1) * state["att"][0]).sum(-1))

    return aggregate(score, x) + state["bias"]


def pyg_1_6(state: State) -> Tensor:
    x_l = (X @ state["lin_l.weight"].t()).view(N, H, C)
    x_r = (X @ state["lin_r.weight"].t()).view(N, H, C)
    alpha_l = (x_l * state["att_l"]).sum(-1)
    alpha_r = (x_r * state["att_r"]).sum(-1)
    return aggregate(lambda i, j: leaky(alpha_l[j] + alpha_r[i]), x_l) + state["bias"]


def pyg_2(state: State) -> Tensor:
    lin_src = state.get("lin_src.weight", state.get("lin.weight"))
    lin_dst = state.get("lin_dst.weight", lin_src)
    x_src, x_dst = (X @ lin_src.t()).view(N, H, C), (X @ lin_dst.t()).view(N, H, C)
    a_src, a_dst = (x_src * state["att_src"]).sum(-1), (x_dst * state["att_dst"]).sum(-1)
    return aggregate(lambda i, j: leaky(a_src[j] + a_dst[i]), x_src) + state["bias"]


def dgl_gat(state: State) -> Tensor:
    ft = (X @ state["fc.weight"].t()).view(N, H, C)
    el, er = (ft * state["attn_l"]).sum(-1), (ft * state["attn_r"]).sum(-1)
    return aggregate(lambda i, j: leaky(el[j] + er[i]), ft) + state["bias"]


def dgnn(state: State) -> Tensor:
    h = (X @ state["W"]).view(N, H, C)
    attn_row, attn_col = (state["attn_l"] * h).sum(-1), (state["attn_r"] * h).sum(-1)
    return aggregate(lambda i, j: leaky(attn_row[i] + attn_col[j]), h) + state["bias"]


def gatv2(state: State) -> Tensor:
    """PyG's names; DGL's are brought to them."""
    names = {"fc_src": "lin_l", "fc_dst": "lin_r", "attn": "att"}
    state = {re.sub(r"^\w+", lambda m: names.get(m[0], m[0]), k): v for k, v in state.items()}
    x_l = (X @ state["lin_l.weight"].t() + state["lin_l.bias"]).view(N, H, C)
    x_r = (X @ state["lin_r.weight"].t() + state["lin_r.bias"]).view(N, H, C)

    def score(i: int, j: int) -> Tensor:
        return (leaky(x_l[j] + x_r[i]) * state["att"][0]).sum(-1)

    return aggregate(score, x_l) + state.get("bias", torch.zeros(()))


W, W2, BIAS = randn(H * C, IN), randn(H * C, IN + 1)[:, 1:], randn(H * C)
ATT, ATT2 = randn(1, H, C), randn(2, H, C)[1:]

OLD: dict[str, tuple[Callable[[State], Tensor], State]] = {
    "PyG 1.3": (pyg_1_3, {"att": torch.cat([ATT, ATT2], -1), "weight": W.t(), "bias": BIAS}),
    "PyG 1.6": (
        pyg_1_6,
        {"att_l": ATT, "att_r": ATT2, "bias": BIAS, "lin_l.weight": W, "lin_r.weight": W},
    ),
    "PyG 2.0": (
        pyg_2,
        {"att_src": ATT, "att_dst": ATT2, "bias": BIAS, "lin_src.weight": W, "lin_dst.weight": W},
    ),
    "PyG 2.5": (pyg_2, {"att_src": ATT, "att_dst": ATT2, "bias": BIAS, "lin.weight": W}),
    "DGL": (dgl_gat, {"attn_l": ATT, "attn_r": ATT2, "bias": BIAS, "fc.weight": W}),
    "dgNN": (dgnn, {"W": W.t(), "attn_l": ATT, "attn_r": ATT2, "bias": BIAS}),
}
OLD_TWO_SIDED: dict[str, tuple[Callable[[State], Tensor], State]] = {
    "PyG 1.6": (pyg_1_6, OLD["PyG 1.6"][1] | {"lin_r.weight": W2}),
    "PyG 2.0": (pyg_2, OLD["PyG 2.0"][1] | {"lin_dst.weight": W2}),
}
PYG_V2 = {
    "att": ATT, "bias": BIAS, "lin_l.weight": W, "lin_l.bias": randn(H * C + 1)[1:],
    "lin_r.weight": W2, "lin_r.bias": randn(H * C + 2)[2:],
}  # fmt: skip
DGL_V2 = {
    "fc_src.weight": W, "fc_src.bias": BIAS, "fc_dst.weight": W2,
    "fc_dst.bias": PYG_V2["lin_r.bias"], "attn": ATT,
}  # fmt: skip


# The layers: where they come from, how they are made and called


def source(name: str) -> Any:
    """The module of layers: gatkernels.nn, or a library's and ours in its place."""
    if name == "gatkernels.nn":
        return ours
    library = {"pyg": "torch_geometric.nn", "dgl": "dgl.nn.pytorch"}[name.rpartition(".")[2]]
    if failure := import_failure(library):
        pytest.skip(failure)
    return pytest.importorskip(library if "." not in name else name)


SOURCES = ["gatkernels.nn", "pyg", "gatkernels.pyg", "dgl", "gatkernels.dgl"]


def make(name: str, kind: str = "GATConv", in_feats: Any = IN, **options: Any) -> nn.Module:
    layer: nn.Module = getattr(source(name), kind)(in_feats, C, H, **options)
    return layer.double()


def call(layer: nn.Module) -> Tensor:
    x: Any = X if isinstance(getattr(layer, "in_channels", IN), int) else (X, X)
    if "dgl" not in "".join(kind.__module__ for kind in type(layer).__mro__):
        found: Tensor = layer(x, EDGES)
        return found
    import dgl

    x = (X, X) if hasattr(layer, "fc_src") else X
    return layer(dgl.graph((LOOPED[0], LOOPED[1])), x).flatten(1)  # type: ignore[no-any-return]


def assert_loads(layer: nn.Module, state: State, expected: Tensor) -> gatkernels.Loaded:
    report = gatkernels.load_state_dict(layer, state)
    torch.testing.assert_close(call(layer), expected, rtol=1e-10, atol=1e-10)
    return report


@pytest.mark.parametrize("old", OLD)
@pytest.mark.parametrize("target", SOURCES)
def test_gat_of_every_generation(target: str, old: str) -> None:
    formula, state = OLD[old]
    assert_loads(make(target), state, formula(state))


@pytest.mark.parametrize("old", [*OLD_TWO_SIDED, "PyG 1.3", "PyG 2.5"])
@pytest.mark.parametrize("target", SOURCES)
def test_gat_with_a_projection_for_each_side(target: str, old: str) -> None:
    """Also from one projection for both, which goes to both sides."""
    formula, state = (OLD_TWO_SIDED | OLD)[old]
    assert_loads(make(target, in_feats=(IN, IN)), state, formula(state))


@pytest.mark.parametrize("state", [PYG_V2, DGL_V2], ids=["pyg", "dgl"])
@pytest.mark.parametrize("target", SOURCES)
def test_gatv2(target: str, state: State) -> None:
    layer = make(target, "GATv2Conv")
    if "dgl" in target and "bias" in state:
        before = copy.deepcopy(layer.state_dict())
        with pytest.raises(ValueError, match="'bias' of the checkpoint has no place in the layer"):
            gatkernels.load_state_dict(layer, state)
        assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    else:
        report = assert_loads(layer, state, gatv2(state))
        zeros = {k for k, v in report.renamed.items() if "zeros" in v}
        assert zeros == ({"bias"} if "bias" in layer.state_dict() and "attn" in state else set())


@pytest.mark.parametrize("target", SOURCES)
@pytest.mark.parametrize("origin", ["gatkernels.nn", "dgl"])
@pytest.mark.parametrize("kind", ["GATConv", "GATv2Conv"])
def test_residual_and_its_bias(kind: str, origin: str, target: str) -> None:
    """DGL's linear residual holds the bias that others add by themselves."""
    given = make(origin, kind, residual=True)
    for key, value in given.named_parameters():
        nn.init.normal_(value, std=0.3 + 0.01 * len(key))
    layer = make(target, kind, residual=True)
    assert_loads(layer, given.state_dict(), call(given))


class Network(nn.Module):
    def __init__(self, origin: str) -> None:
        super().__init__()
        self.conv1 = make(origin)
        self.norm = nn.BatchNorm1d(H * C).double()
        self.conv10 = make(origin, "GATv2Conv", H * C)
        self.lin = nn.Linear(H * C, 2).double()


OLD_NETWORK = {
    **{f"conv1.{k}": v for k, v in OLD["PyG 1.3"][1].items()},
    **{f"norm.{k}": randn(H * C).abs() for k in ("weight", "bias", "running_mean", "running_var")},
    "conv10.att": ATT,
    "conv10.bias": BIAS,
    **{f"conv10.lin_{s}.weight": randn(H * C, H * C) for s in "lr"},
    **{f"conv10.lin_{s}.bias": randn(H * C) for s in "lr"},
    "lin.weight": randn(2, H * C),
    "lin.bias": randn(2),
}


def test_nested_model_and_the_report() -> None:
    model = Network("gatkernels.nn")
    report = gatkernels.load_state_dict(model, OLD_NETWORK)
    assert str(report).splitlines() == [
        "gatkernels: 16 tensors loaded, 3 renamed",
        "  conv1.att_src     from conv1.att, second half",
        "  conv1.att_dst     from conv1.att, first half",
        "  conv1.lin.weight  from conv1.weight, transposed",
    ]
    expected = pyg_1_3(OLD["PyG 1.3"][1])
    torch.testing.assert_close(call(model.conv1), expected, rtol=1e-10, atol=1e-10)
    for key in ("conv10.lin_l.weight", "norm.running_var", "lin.bias"):
        assert torch.equal(model.state_dict()[key], OLD_NETWORK[key]), key


def test_its_own_state_is_loaded_as_it_is() -> None:
    model, other = Network("gatkernels.nn"), Network("gatkernels.nn")
    report = gatkernels.load_state_dict(model, other.state_dict())
    assert not report.renamed
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


def test_lazy_layers_take_their_sizes_from_the_checkpoint() -> None:
    layer = make("pyg", in_feats=-1)
    formula, state = OLD["PyG 1.3"]
    assert_loads(layer, state, formula(state))


def test_edge_scores_and_shared_weights() -> None:
    given = make("pyg", edge_dim=2)
    layer = make("gatkernels.pyg", edge_dim=2)
    old = {k.replace("lin.", "lin_src."): v for k, v in given.state_dict().items()}
    gatkernels.load_state_dict(layer, old | {"lin_dst.weight": old["lin_src.weight"]})
    assert all(torch.equal(v, given.state_dict()[k]) for k, v in layer.state_dict().items())
    shared = make("gatkernels.nn", "GATv2Conv", share_weights=True)
    gatkernels.load_state_dict(
        shared, make("gatkernels.nn", "GATv2Conv", share_weights=True).state_dict()
    )
    with pytest.raises(ValueError, match=r"'lin_l.weight' and 'lin_r.weight' are one parameter"):
        gatkernels.load_state_dict(shared, PYG_V2)


# Errors: each names the key, and nothing is loaded


def without(key: str) -> State:
    return {k: v for k, v in OLD_NETWORK.items() if k != key}


BAD: dict[str, tuple[State, str]] = {
    "shape": (
        OLD_NETWORK | {"conv1.weight": randn(IN + 1, H * C)},
        r"'conv1.lin.weight' has shape \(12, 5\) in the model, \(12, 6\) in the checkpoint "
        r"\(conv1.weight, transposed\)",
    ),
    "shape elsewhere": (
        OLD_NETWORK | {"lin.bias": randn(3)},
        r"'lin.bias' has shape \(2,\) in the model, \(3,\) in the checkpoint",
    ),
    "heads": (
        OLD_NETWORK | {"conv1.att": randn(1, H + 1, 2 * C)},
        r"'conv1.att_src' has shape \(1, 3, 4\) in the model, \(1, 4, 4\) in the checkpoint",
    ),
    "missing part": (
        without("conv1.bias"),
        r"'conv1.bias' \(12,\) of the model is not in the checkpoint",
    ),
    "missing layer": (
        {k: v for k, v in OLD_NETWORK.items() if not k.startswith("conv10")},
        r"'conv10.att' \(1, 3, 4\) of the model is not in the checkpoint",
    ),
    "left over": (
        OLD_NETWORK | {"conv2.weight": randn(2, 3)},
        r"'conv2.weight' \(2, 3\) of the checkpoint is not in the model",
    ),
    "no place": (
        {k: v for k, v in OLD_NETWORK.items() if not k.startswith("conv1.")}
        | {f"conv1.{k}": v for k, v in OLD["PyG 2.5"][1].items()}
        | {"conv1.res.weight": W},
        "'conv1.res.weight' of the checkpoint has no place in the layer",
    ),
    "another formula": (
        OLD_NETWORK | {f"conv10.{k}": v for k, v in OLD["PyG 1.3"][1].items()},
        "'conv10' is a GATv2 layer, but the checkpoint holds GAT",
    ),
    "unknown layout": (
        {k.replace("conv1.att", "conv1.atn"): v for k, v in OLD_NETWORK.items()},
        r"'conv1.atn' \(1, 3, 8\) of the checkpoint is not in the model",
    ),
    "two for one": (
        {k: v for k, v in OLD_NETWORK.items() if not k.startswith("conv1.")}
        | {f"conv1.{k}": v for k, v in OLD_TWO_SIDED["PyG 2.0"][1].items()},
        r"'conv1.lin_src.weight' and 'conv1.lin_dst.weight' differ, but the layer has "
        r"'conv1.lin.weight' for both",
    ),
}


@pytest.mark.parametrize("why", BAD)
def test_a_mismatch_is_an_error_and_nothing_is_loaded(why: str) -> None:
    state, message = BAD[why]
    model = Network("gatkernels.nn")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="nothing was loaded") as error:
        gatkernels.load_state_dict(model, state)
    assert re.search(message, str(error.value)), str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_edge_features_in_the_values_are_another_formula() -> None:
    given = source("dgl").EdgeGATConv(IN, 2, C, H, residual=False)
    layer = make("gatkernels.pyg", edge_dim=2)
    with pytest.raises(ValueError, match=r"'fc_edge.weight' of the checkpoint has no place"):
        gatkernels.load_state_dict(layer, given.state_dict())


@pytest.mark.parametrize(
    ("model", "state", "message"),
    [
        ([], {}, "'model' must be a torch.nn.Module, got list"),
        (nn.Linear(1, 1), [], "'state' must be a state dict, got list"),
        (nn.Linear(1, 1), {"model": {}}, "'model' is a dict; give the entry of the checkpoint"),
    ],
)
def test_wrong_types(model: Any, state: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        gatkernels.load_state_dict(model, state)
