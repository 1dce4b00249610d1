"""The training loop: losses fall, the best weights are kept, a resumed run is the same run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from gatkernels.experiments import datasets
from gatkernels.experiments.presets import MODELS, Preset, get_preset
from gatkernels.experiments.training import (
    EarlyStopping,
    Options,
    Training,
    build_model,
    f1_counts,
    train,
)


def test_training_reduces_the_loss(cora_like):
    seen = []
    result = train(
        get_preset("cora").with_options(epochs=25, feature_dropout=0.0),
        cora_like,
        seed=1,
        on_epoch=seen.append,
    )
    losses = result.curves["train_loss"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05
    assert result.epochs == len(losses) == len(seen) == 25
    assert result.stop == "epochs"
    assert result.ms_per_epoch > 0
    assert 0.3 < result.test_score <= 1
    assert seen[-1].val_score == result.curves["val_score"][-1]


def test_same_seed_same_run(cora_like):
    preset = get_preset("cora").with_options(epochs=4)
    one, same, other = (train(preset, cora_like, seed=s) for s in (0, 0, 1))
    assert one.curves == same.curves
    assert one.curves != other.curves


class Scripted(nn.Module):
    """Validation accuracy and loss follow a script, one entry per training step.

    Two validation nodes of class 0: ``right`` of them get it with the given margin.
    """

    def __init__(self, script):
        super().__init__()
        self.script = script
        self.step = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, graph):
        if self.training:
            self.step += 1
        right, margin = self.script[int(self.step) - 1]
        logits = torch.zeros(x.shape[0], 2)
        logits[2:4, 0] = torch.tensor([margin if node < right else -margin for node in range(2)])
        return logits + self.weight


def scripted_run(script, **options):
    masks = torch.zeros(3, 6, dtype=torch.bool)
    for row in range(3):
        masks[row, 2 * row : 2 * row + 2] = True
    data = datasets.Dataset(
        "cora",
        torch.eye(6).to_sparse_csr(),
        torch.zeros(2, 0, dtype=torch.long),
        torch.zeros(6, dtype=torch.long),
        *masks,
        num_classes=2,
        source="script",
        public_split=False,
    )
    preset = Preset("cora", epochs=len(script)).with_options(**options)
    run = Training(preset, data, model=lambda *_: Scripted(script))
    while not run.finished:
        run.step()
    return run.result("patience" if run.stopping.exhausted else "epochs")


@pytest.mark.parametrize(
    ("monitor", "best"),
    [
        ("acc", 3),  # the highest accuracy; of equals the lower loss
        ("loss", 6),
        ("acc_or_loss", 4),  # the last epoch at which both were at their best
    ],
)
def test_monitor_and_best_weights(monitor, best):
    script = [(1, 0.1), (1, 0.05), (2, 0.2), (2, 0.2), (1, 1.0), (1, 0.01)]
    if monitor == "loss":
        script = [(1, 1.0), (1, 0.9), (1, 0.8), (1, 0.7), (1, 0.6), (1, 0.1)]
    result = scripted_run(script, monitor=monitor, patience=10)
    assert result.best_epoch == best
    assert int(result.state["step"]) == best
    assert result.val_score == script[best - 1][0] / 2


def test_patience():
    script = [(1, 0.1), (2, 0.1), *[(1, 0.5)] * 20]
    result = scripted_run(script, monitor="acc", patience=4)
    assert result.stop == "patience"
    assert result.epochs == 2 + 4
    assert result.best_epoch == 2


def test_patience_restarts_on_either():
    stopping = EarlyStopping("acc_or_loss", patience=2)
    assert stopping.update(0.5, 1.0)
    assert not stopping.update(0.6, 1.1)  # better accuracy only
    assert not stopping.update(0.5, 0.9)  # better loss only
    assert stopping.waited == 0
    assert not stopping.update(0.5, 1.0)
    assert not stopping.exhausted
    assert not stopping.update(0.5, float("nan"))
    assert stopping.exhausted


def test_another_network_through_the_same_loop(cora_like):
    from torch_geometric.nn import GATConv

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GATConv(1433, 7)

        def forward(self, x, edge_index):
            return self.conv(x, edge_index)

    run = Training(
        get_preset("cora").with_options(epochs=2),
        replace(cora_like, x=cora_like.x.to_dense()),
        model=lambda preset, data, backend: Net(),
        graph=lambda edge_index, num_nodes: edge_index,
    )
    while not run.finished:
        run.step()
    assert run.result("epochs").epochs == 2


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("data", ["small_cora", "small_ppi"])
def test_every_model_learns(model, data, request):
    data = request.getfixturevalue(data)
    preset = get_preset(data.name, model).with_options(
        epochs=40, patience=40, hidden=16, lr=0.01, dropout=0.0
    )
    losses = train(preset, data).curves["train_loss"]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("data", ["small_cora", "small_ppi"])
def test_resumed_run_has_the_same_curves(data, request):
    data = request.getfixturevalue(data)
    preset = get_preset(data.name).with_options(epochs=8, hidden=4, dropout=0.5)
    whole = train(preset, data, seed=3)
    first = Training(preset, data, seed=3)
    for _ in range(5):
        first.step()
    state = first.state_dict()
    torch.manual_seed(99)
    second = Training(preset, data, seed=3)
    second.load_state_dict(state)
    while not second.finished:
        second.step()
    result = second.result("epochs")
    assert result.curves == whole.curves
    assert result.best_epoch == whole.best_epoch
    assert result.test_score == whole.test_score
    assert all(torch.equal(result.state[name], whole.state[name]) for name in whole.state)


def test_micro_f1_over_all_nodes(small_ppi):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 7, generator=generator)
    labels = (torch.rand(50, 7, generator=generator) < 0.4).float()
    from sklearn.metrics import f1_score

    part, whole = f1_counts(logits, labels).tolist()
    assert part / whole == pytest.approx(f1_score(labels, logits > 0, average="micro"))
    result = train(get_preset("ppi").with_options(epochs=3, hidden=8), small_ppi)
    assert 0 < result.test_score <= 1
    assert result.test_score_exact != result.test_score
    batch = Training(get_preset("ppi"), small_ppi).batches.part("val")
    assert batch.x.shape[0] == 20
    assert int(batch.graph.rowptr[-1]) == 2 * 19 + 20


def test_an_epoch_visits_every_graph_once(small_ppi):
    run = Training(get_preset("ppi").with_options(hidden=4, batch=3), small_ppi)
    sizes = [batch.x.shape[0] for batch in run.batches.training()]
    assert len(sizes) == 2
    assert sum(sizes) == 90
    orders = {tuple(b.x.shape[0] for b in run.batches.training()) for _ in range(20)}
    assert len(orders) > 1


def test_sparse_and_dense_features_give_the_same_network(small_cora):
    for name in MODELS:
        preset = get_preset("cora", name)
        model = build_model(preset, small_cora).eval()
        batch = Training(preset, small_cora).batches.part("test")
        assert batch.x.layout == torch.sparse_csr
        torch.testing.assert_close(
            model(batch.x, batch.graph), model(batch.x.to_dense(), batch.graph)
        )


def test_gcn_is_pygs(small_cora):
    from torch_geometric.nn import GCNConv

    preset = get_preset("cora", "gcn")
    model = build_model(preset, small_cora).eval()
    theirs = [GCNConv(lin.in_features, lin.out_features) for lin in model.lins]
    for layer, lin in zip(theirs, model.lins, strict=True):
        layer.lin.weight.data.copy_(lin.weight)
        layer.bias.data.copy_(lin.bias)
    x, edges = small_cora.x.to_dense(), small_cora.edge_index
    expected = theirs[1](theirs[0](x, edges).relu(), edges)
    torch.testing.assert_close(model(small_cora.x, edges), expected)
    loss = model(small_cora.x, edges).square().sum()
    ours = torch.autograd.grad(loss, [lin.weight for lin in model.lins])
    expected = torch.autograd.grad(expected.square().sum(), [layer.lin.weight for layer in theirs])
    torch.testing.assert_close(ours, expected)


def test_residual_network():
    from gatkernels.models import GAT

    model = GAT(5, 4, 3, heads=2, out_heads=6, dropout=0.0, layers=3, residual=True)
    widths = [conv.res.weight.shape for conv in model.convs]
    assert widths == [(8, 5), (8, 8), (3, 8)]
    x = torch.randn(6, 5)
    edges = torch.tensor([[0, 1, 2, 5], [1, 2, 0, 4]])
    hidden = x
    for conv in model.convs[:2]:
        hidden = nn.functional.elu(conv(hidden, edges))
    torch.testing.assert_close(model(x, edges), model.convs[2](hidden, edges))
    for options in ({"layers": 1}, {"version": 3}):
        with pytest.raises(ValueError, match=next(iter(options))):
            GAT(5, 4, 3, **options)


def test_cosine_schedule(small_cora):
    preset = get_preset("cora").with_options(schedule="cosine", epochs=4, lr=0.01)
    run = Training(preset, small_cora)
    rates = []
    while not run.finished:
        run.step()
        rates.append(run.optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(rates, [0.01, 0.0085355, 0.005, 0.0014645], rtol=1e-4)


def test_amp_and_compile_train_alike(small_cora, monkeypatch):
    preset = get_preset("cora").with_options(epochs=3, dropout=0.0, feature_dropout=0.0)
    plain = train(preset, small_cora).curves["train_loss"]
    amp = train(preset, small_cora, options=Options(amp=True)).curves["train_loss"]
    np.testing.assert_allclose(amp, plain, rtol=0.02)
    compiled = []

    def compile_eagerly(model):
        compiled.append(model)
        return model

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    again = train(preset, small_cora, options=Options(compile=True)).curves["train_loss"]
    assert again == plain
    assert len(compiled) == 1


def test_preset_options():
    preset = get_preset("PubMed").with_options(lr=0.02, epochs=None)
    assert (preset.lr, preset.out_heads, preset.weight_decay) == (0.02, 8, 1e-3)
    for options, message in (
        ({"width": 3}, "unknown preset options: width"),
        ({"layers": 1}, "layers must be at least 2 for gat"),
        ({"negative_slope": float("nan")}, "negative_slope must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            preset.with_options(**options)
    with pytest.raises(
        ValueError, match="unknown model 'gan'; choose from gat, gatv2, transformer, gcn, mlp"
    ):
        get_preset("cora", "gan")
