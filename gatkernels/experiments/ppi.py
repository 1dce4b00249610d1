"""Protein interactions of 24 human tissues (Zitnik and Leskovec, 2017), split by graph."""

from __future__ import annotations

import contextlib
import io
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatkernels.experiments import sources
from gatkernels.experiments.datasets import Dataset, DatasetError, Notice
from gatkernels.extras import require

COMPACT = "ppi_compact.npz"
FEATURES, LABELS = 50, 121
SPLITS = ("train", "valid", "test")
RAW = [
    f"{split}_{part}"
    for split in SPLITS
    for part in ("feats.npy", "graph_id.npy", "graph.json", "labels.npy")
]


def from_folder(name: str, data_dir: Path, option: str) -> Dataset:
    places = [data_dir / "ppi", data_dir / "PPI", data_dir]
    source = f"PPI from {option}"
    for place in places:
        if (place / COMPACT).is_file():
            try:
                return _compact(place / COMPACT, source)
            except Exception as error:  # a damaged archive can raise anything
                raise DatasetError(f"{option} {data_dir}: cannot read PPI: {error}") from error
        for raw in (place / "raw", place):
            if all((raw / file).is_file() for file in RAW):
                return _from_raw(raw, source)
    raise DatasetError(
        f"{option} {data_dir}: no PPI there; expected {places[0] / COMPACT}, or {RAW[0]}, ... "
        f"{RAW[-1]} ({len(RAW)} files) in {places[0] / 'raw'}"
    )


def cached(name: str) -> Iterator[Dataset]:
    root = _root()
    if root.is_dir():
        yield _joined(_pyg(root), f"PPI from the cache {root}")


def fetch(name: str, notice: Notice, generate: bool) -> Dataset:
    try:
        with sources.filling(_root()) as work:
            _pyg(work)
    except Exception as error:  # PyG's download can raise anything
        raise DatasetError(sources.nowhere(name, error)) from error
    return next(cached(name))


def _root() -> Path:
    return sources.cache_root() / "ppi"


def _from_raw(raw: Path, source: str) -> Dataset:
    """PyG parses the raw files, once, in the cache."""
    root = sources.cache_root() / f"ppi-{sources.digest(raw, RAW)[:16]}"
    try:
        if not root.is_dir():
            with sources.filling(root) as work:
                (work / "raw").mkdir()
                for file in RAW:
                    shutil.copyfile(raw / file, work / "raw" / file)
                _pyg(work)
        return _joined(_pyg(root), source)
    except Exception as error:
        raise DatasetError(f"{raw}: cannot read PPI: {error}") from error


def _pyg(root: Path) -> list[Any]:
    """The data objects of PyG's three data sets, downloaded where the raw files are missing."""
    loader = require("torch_geometric.datasets", "torch-geometric").PPI
    require("networkx", "networkx")
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return [loader(str(root), split) for split in ("train", "val", "test")]


def _joined(parts: list[Any], source: str) -> Dataset:
    graphs = [data for part in parts for data in part]
    node_ptr = np.cumsum([0, *(data.num_nodes for data in graphs)])
    edges = [data.edge_index + int(start) for data, start in zip(graphs, node_ptr, strict=False)]
    return _dataset(
        torch.cat([data.x for data in graphs]),
        edges,
        torch.cat([data.y for data in graphs]),
        node_ptr,
        [len(part) for part in parts],
        source,
    )


def _compact(path: Path, source: str) -> Dataset:
    """The archive of bits: every feature has two values only, and every link is stored once."""
    x, y, exact, edges, sizes, counts = [], [], [], [], [0], []
    with np.load(path) as file:
        for split in SPLITS:
            bits = np.unpackbits(file[f"{split}_x"], axis=1)[:, :FEATURES].astype(bool)
            x.append(np.where(bits, file["feat_value1"], file["feat_value0"]))
            y.append(np.unpackbits(file[f"{split}_y"], axis=1)[:, :LABELS])
            exact.append(file[f"{split}_label_exact"])
            graph = file[f"{split}_graph_id"].astype(np.int64)
            graph -= graph[0]
            link = file[f"{split}_edges"].astype(np.int64)
            first = sum(sizes)
            for number in range(int(graph[-1]) + 1):
                pair = torch.from_numpy(link[:, graph[link[0]] == number] + first)
                edges.append(torch.cat([pair, pair.flip(0)], dim=1))
            sizes.extend(np.bincount(graph).tolist())
            counts.append(int(graph[-1]) + 1)
    return _dataset(
        torch.from_numpy(np.concatenate(x)).float(),
        edges,
        torch.from_numpy(np.concatenate(y)).float(),
        np.cumsum(sizes),
        counts,
        source,
        torch.from_numpy(np.concatenate(exact)),
    )


def _dataset(
    x: Tensor,
    edges: list[Tensor],
    y: Tensor,
    node_ptr: Any,
    counts: list[int],
    source: str,
    exact: Tensor | None = None,
) -> Dataset:
    bounds = np.cumsum([0, *counts])
    masks = torch.zeros(3, x.shape[0], dtype=torch.bool)
    for mask, first, last in zip(masks, bounds[:-1], bounds[1:], strict=True):
        mask[int(node_ptr[first]) : int(node_ptr[last])] = True
    edge_ptr = np.cumsum([0, *(pair.shape[1] for pair in edges)])
    return Dataset(
        "ppi",
        x.contiguous(),
        torch.cat(edges, dim=1),
        y,
        masks[0],
        masks[1],
        masks[2],
        num_classes=y.shape[1],
        source=f"{source}, split by graph",
        public_split=True,
        node_ptr=torch.from_numpy(node_ptr),
        edge_ptr=torch.from_numpy(edge_ptr),
        exact_mask=exact,
    )
