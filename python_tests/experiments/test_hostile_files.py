"""Files that users name: whatever is in them, one line says which it is, and no code runs; and
where one cannot be written, what was there stays."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_data import write_amazon, write_ppi

from gatkernels import disk
from gatkernels.bench import graphs, results
from gatkernels.distributed import files, stream
from gatkernels.experiments import datasets, jobs, plots, reproduce, runs
from gatkernels.experiments.datasets import DatasetError


class _Touch:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("made"),)


CONTENTS = {
    "nothing": b"",
    "text": b"<html>",
    "bytes": bytes(range(256)) * 8,
    "code": pickle.dumps(_Touch()),
    "archive of nothing": b"PK\x05\x06" + bytes(18),
    "broken archive": b"PK\x03\x04 broken",
    "deep": b"[" * 100_000,
    "list": b"[1, 2]",
    "number": b"7",
    "other": b'{"format": 1, "cases": ["x"], "curves": [], "parts": ["x"], "owners": null}',
}


def _with_metrics(folder: Path) -> None:
    (folder / "metrics.json").write_text('{"runs": []}')
    runs.load_run(folder)


def _graph(folder: Path) -> None:
    raw = folder / "coauthor" / "Physics" / "raw"
    raw.mkdir(parents=True)
    (folder / "physics.npz").rename(raw / "ms_academic_phy.npz")
    graphs.GRAPHS["physics"].load(1.0)


#: A file, what reads it in its folder, and the error there.
LOADERS: dict[str, tuple[str, Callable[[Path], Any], type[Exception]]] = {
    "metrics": ("metrics.json", runs.read_metrics, runs.RunError),
    "checkpoint": ("checkpoint.pt", _with_metrics, runs.RunError),
    "state": ("state.pt", jobs.refuse_interrupted, runs.RunError),
    "table": (reproduce.RESULTS, reproduce._earlier, runs.RunError),
    "benchmark": ("r.json", lambda folder: results.load(folder / "r.json"), ValueError),
    "partition": ("manifest.json", files.read_manifest, ValueError),
    "edges": ("e.npy", lambda folder: stream.EdgeFile.open(folder / "e.npy"), ValueError),
    "ppi": ("ppi_compact.npz", lambda folder: datasets.load("ppi", folder), DatasetError),
    "photo": (
        "amazon_electronics_photo.npz",
        lambda folder: datasets.load("photo", folder),
        DatasetError,
    ),
    "physics": ("physics.npz", _graph, graphs.Unavailable),
}


def refused(name: str, content: bytes, folder: Path) -> None:
    folder.mkdir()
    file, load, kind = LOADERS[name]
    (folder / file).write_bytes(content)
    with pytest.raises(kind) as caught:
        load(folder)
    text = str(caught.value)
    assert str(folder) in text
    assert "\n" not in text


@pytest.mark.parametrize("name", LOADERS)
def test_whatever_is_in_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, content in enumerate(CONTENTS.values()):
        monkeypatch.setenv("GATKERNELS_DATA", str(tmp_path / f"{number}"))
        refused(name, content, tmp_path / f"{number}")
    assert not Path("made").exists()


def _objects(path: Path) -> None:
    """An archive whose arrays are pickles."""
    array = np.array([_Touch()])
    np.savez(path, **dict.fromkeys(("train_x", "attr_shape", "adj_indptr"), array))


@pytest.mark.parametrize("name", ["ppi", "photo", "physics"])
def test_arrays_of_objects(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _objects(tmp_path / "objects.npz")
    monkeypatch.setenv("GATKERNELS_DATA", str(tmp_path / "data"))
    refused(name, (tmp_path / "objects.npz").read_bytes(), tmp_path / "data")
    assert not Path("made").exists()


def test_states_and_edges_that_are_pickles(tmp_path: Path) -> None:
    torch.save({"format": runs.FORMAT, "run": _Touch()}, tmp_path / "state.pt")
    np.save(tmp_path / "edges.npy", np.array([_Touch()]))
    for path in (tmp_path / "state.pt", tmp_path / "edges.npy"):
        refused(path.stem, path.read_bytes(), tmp_path / path.stem)
    assert not Path("made").exists()


@pytest.mark.parametrize("state", [{}, {"run": 3}, {"run": {"seed": 1}}])
def test_a_state_of_something_else(state: dict[str, Any], tmp_path: Path) -> None:
    runs.save_state(tmp_path, {"finished": False, **state})
    with pytest.raises(runs.RunError, match=r"state\.pt: not of a training: "):
        jobs.refuse_interrupted(tmp_path)


@pytest.mark.parametrize("name", ["state", "ppi", "photo"])
def test_a_file_that_was_cut_short(name: str, tmp_path: Path) -> None:
    path = tmp_path / LOADERS[name][0]
    if name == "state":
        runs.save_state(tmp_path, {"weights": torch.zeros(300)})
    else:
        (write_ppi if name == "ppi" else write_amazon)(path)
    content = path.read_bytes()
    for eighth in range(1, 8):
        refused(name, content[: len(content) * eighth // 8], tmp_path / f"{eighth}")


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process gets longer than 4 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def another_user() -> Iterator[None]:
    """One who may not write everywhere, as root may."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def _draw(path: Path) -> None:
    figure = plots.style.new_figure(4.0, 3.0)
    figure.subplots().plot(range(100))
    disk.write(path, lambda part: plots.style.save(figure, part))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "state.pt": lambda path: runs.save_state(path.parent, {"weights": torch.zeros(9000)}),
    "metrics.json": lambda path: runs.write_json(path, list(range(9000))),
    "results.json": lambda path: results.write_json(path, list(range(9000))),
    "page.html": lambda path: disk.write(path, lambda part: part.write_text("x" * 9000)),
    "curves.png": _draw,
    "curves.svg": _draw,
}


@pytest.mark.parametrize("trouble", [full_disk, another_user])
@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_be_written_leaves_what_was_there(
    name: str, trouble: Callable[[], Any]
) -> None:
    with tempfile.TemporaryDirectory() as made:
        path = Path(made, name)
        WRITERS[name](path)
        before = path.read_bytes()
        Path(made).chmod(0o755 if trouble is full_disk else 0o555)
        with pytest.raises(OSError, match=re.escape(made)) as caught, trouble():
            WRITERS[name](path)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == before
        assert os.listdir(made) == [name]


def test_a_cache_that_cannot_be_written_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    edges = np.stack([np.arange(9000), np.arange(9000)])
    with full_disk():
        found = graphs.cached("long", lambda: edges)
    assert np.array_equal(found, edges)
    assert "graph not cached" in capsys.readouterr().err
    assert list((graphs.cache_dir() / "graphs").iterdir()) == []


def test_json_of_every_kind_is_refused(tmp_path: Path) -> None:
    """What JSON can hold in the place of each part of a manifest."""
    np.save(tmp_path / "edges.npy", np.array([[0, 1, 2], [1, 2, 0]]))
    stream.partition_file(tmp_path / "edges.npy", 3, 2, "range", tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    good = json.loads(path.read_text())
    files.read_manifest(tmp_path / "out")
    for key in ("num_nodes", "parts", "bounds", "owners", "format"):
        for value in ("x", 10**30, -1, [1], {"a": 1}):
            path.write_text(json.dumps({**good, key: value}))
            with pytest.raises(ValueError, match=r"manifest\.json: not written by this version"):
                files.read_manifest(tmp_path / "out")
