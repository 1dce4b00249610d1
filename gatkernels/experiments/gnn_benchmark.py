"""Amazon and Coauthor graphs (Shchur et al., 2018): the files PyG's loaders download."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from gatkernels.experiments import sources
from gatkernels.experiments.datasets import (
    SPLIT_SIZES,
    Dataset,
    DatasetError,
    Notice,
    bag_of_words,
    random_split,
)
from gatkernels.experiments.sources import TITLES, SourceError
from gatkernels.extras import require

FILES = {
    "photo": ("amazon/Photo", "amazon_electronics_photo.npz"),
    "computers": ("amazon/Computers", "amazon_electronics_computers.npz"),
    "cs": ("coauthor/CS", "ms_academic_cs.npz"),
    "physics": ("coauthor/Physics", "ms_academic_phy.npz"),
}


def from_folder(name: str, data_dir: Path, option: str) -> Dataset:
    folder, file = FILES[name]
    places = (data_dir / folder / "raw", data_dir / Path(folder).name / "raw", data_dir)
    path = next((place / file for place in places if (place / file).is_file()), None)
    if path is None:
        raise DatasetError(
            f"{option} {data_dir}: no {TITLES[name]} there; expected {places[0] / file}"
        )
    return _read(name, path, f"{TITLES[name]} from {option}")


def cached(name: str) -> Iterator[Dataset]:
    path = _cached_file(name)
    if path.is_file():
        yield _read(name, path, f"{TITLES[name]} from the cache {path.parent}")


def fetch(name: str, notice: Notice, generate: bool) -> Dataset:
    path = _cached_file(name)
    base = require("torch_geometric.datasets", "torch-geometric").Amazon.url
    try:
        with sources.filling(path.parent) as work:
            sources.download_files(base.rstrip("/"), [path.name], work)
            _read(name, work / path.name, "")  # only a file that can be read is kept
    except SourceError as error:
        raise DatasetError(sources.nowhere(name, error)) from error
    return next(cached(name))


def _cached_file(name: str) -> Path:
    return sources.cache_root() / "gnn-benchmark" / name / FILES[name][1]


def _read(name: str, path: Path, source: str) -> Dataset:
    """Parse the file as PyG does, but with the features sparse throughout."""
    utils = require("torch_geometric.utils", "torch-geometric")
    try:
        with np.load(path) as file:
            nodes, features = (int(size) for size in file["attr_shape"])
            words = torch.from_numpy((file["attr_data"] > 0).astype(np.float32))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
                x = torch.sparse_csr_tensor(
                    torch.from_numpy(file["attr_indptr"].astype(np.int64)),
                    torch.from_numpy(file["attr_indices"].astype(np.int64)),
                    words,
                    (nodes, features),
                    check_invariants=True,
                )
            indptr = file["adj_indptr"].astype(np.int64)
            row = torch.from_numpy(np.repeat(np.arange(nodes), np.diff(indptr)))
            col = torch.from_numpy(file["adj_indices"].astype(np.int64))
            y = torch.from_numpy(file["labels"].astype(np.int64))
    except Exception as error:  # a damaged archive can raise anything
        raise DatasetError(f"{path}: cannot read {TITLES[name]}: {error}") from error
    edge_index = utils.to_undirected(
        utils.remove_self_loops(torch.stack([row, col]))[0], num_nodes=nodes
    )
    classes = int(y.max()) + 1
    masks = random_split(y, classes, 0, *SPLIT_SIZES[name])
    source += ", split drawn with the run's seed (20 per class to train, 30 to validate)"
    return Dataset(name, bag_of_words(x), edge_index, y, *masks, classes, source, False)
