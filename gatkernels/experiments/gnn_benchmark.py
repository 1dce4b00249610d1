"""Amazon and Coauthor graphs (Shchur et al., 2018): the files PyG's loaders download."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import torch

from gatkernels.experiments import require, sources
from gatkernels.experiments.datasets import (
    SPLIT_SIZES,
    Dataset,
    DatasetError,
    Notice,
    bag_of_words,
    random_split,
)
from gatkernels.experiments.sources import TITLES, SourceError

FILES = {
    "photo": ("amazon/Photo", "amazon_electronics_photo.npz"),
    "computers": ("amazon/Computers", "amazon_electronics_computers.npz"),
    "cs": ("coauthor/CS", "ms_academic_cs.npz"),
    "physics": ("coauthor/Physics", "ms_academic_phy.npz"),
}


def load(name: str, data_dir: Path | None, notice: Notice) -> Dataset:
    """As :func:`gatkernels.experiments.datasets.load`, for these four graphs."""
    require("torch_geometric.utils", "torch-geometric")
    if data_dir is not None:
        return _from_folder(name, data_dir, "--data")
    if folder := os.environ.get("GATKERNELS_DATA"):
        try:
            return _from_folder(name, Path(folder), "$GATKERNELS_DATA")
        except DatasetError as error:
            notice(f"{error}; trying the next source")
    _, file = FILES[name]
    root = sources.cache_root() / "gnn-benchmark" / name
    if not root.is_dir():
        base = require("torch_geometric.datasets", "torch-geometric").Amazon.url
        try:
            with sources.filling(root) as work:
                sources.download_files(base.rstrip("/"), [file], work)
                _read(name, work / file, "")  # only a file that can be read is kept
        except SourceError as error:
            raise DatasetError(sources.nowhere(name, error)) from error
    return _read(name, root / file, f"{TITLES[name]} from the cache {root}")


def _from_folder(name: str, data_dir: Path, option: str) -> Dataset:
    folder, file = FILES[name]
    places = (data_dir / folder / "raw", data_dir / Path(folder).name / "raw", data_dir)
    path = next((place / file for place in places if (place / file).is_file()), None)
    if path is None:
        raise DatasetError(
            f"{option} {data_dir}: no {TITLES[name]} there; expected {places[0] / file}"
        )
    return _read(name, path, f"{TITLES[name]} from {option}")


def _read(name: str, path: Path, source: str) -> Dataset:
    """Parse the file as PyG does, but with the features sparse throughout."""
    from torch_geometric.utils import remove_self_loops, to_undirected

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
    edge_index = to_undirected(remove_self_loops(torch.stack([row, col]))[0], num_nodes=nodes)
    classes = int(y.max()) + 1
    masks = random_split(y, classes, 0, *SPLIT_SIZES[name])
    source += ", split drawn with the run's seed (20 per class to train, 30 to validate)"
    return Dataset(name, bag_of_words(x), edge_index, y, *masks, classes, source, False)
