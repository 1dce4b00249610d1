"""The graphs of the benchmark: real ones where their files are, generated twins of the others.

Real files are looked for below `$GATKERNELS_DATA`. Generated graphs are kept in the user's cache.
"""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatkernels.bench import generate
from gatkernels.bench.generate import IntArray

#: Part of every cached file's name: raise it when a generator changes what it draws.
CACHE_VERSION = 1


class Unavailable(Exception):
    """A graph cannot be had here; the message is the reason."""


@dataclass(frozen=True)
class Edges:
    """Directed edges from sources to destinations, sorted by source."""

    edge_index: Tensor  # [2, E] int64
    num_src: int
    num_dst: int
    note: str


@dataclass(frozen=True)
class GraphSpec:
    """How to get a graph; `load` takes the scale, which only generated graphs heed."""

    load: Callable[[float], Edges]
    in_channels: int
    classes: int
    num_edges: int  # at scale 1
    generated: bool = False


def cache_dir() -> Path:
    """`$GATKERNELS_CACHE`, else the user's cache directory."""
    if override := os.environ.get("GATKERNELS_CACHE"):
        return Path(override).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local"))
    elif sys.platform == "darwin":
        base = Path("~/Library/Caches")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return base.expanduser() / "gatkernels"


def cached(name: str, build: Callable[[], IntArray]) -> IntArray:
    """The edges [2, E], sorted by source, stored under `name`; built where missing or unreadable.

    Written beside the target and renamed, so that two runs at once never see half a file.
    """
    path = cache_dir() / "graphs" / f"{name}-v{CACHE_VERSION}.npz"
    try:
        with np.load(path) as stored:
            rowptr, col = stored["rowptr"], stored["col"]
        if rowptr[-1] == col.size:
            src = np.repeat(np.arange(rowptr.size - 1), np.diff(rowptr))
            return np.stack([src, col.astype(np.int64)])
    except (OSError, ValueError, EOFError, KeyError, IndexError, zipfile.BadZipFile):
        pass
    edges = build()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        last = int(edges[0].max(initial=-1)) + 1
        rowptr = np.concatenate([[0], np.bincount(edges[0], minlength=last).cumsum()])
        try:
            with partial.open("wb") as file:
                np.savez(file, rowptr=rowptr, col=edges[1].astype(np.int32))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        print(f"graph not cached: {error}", file=sys.stderr)
    return edges


def data_file(relative: str) -> Path:
    """A file under `$GATKERNELS_DATA`; raises Unavailable when it is not there."""
    root = os.environ.get("GATKERNELS_DATA")
    if not root:
        raise Unavailable(f"GATKERNELS_DATA is not set ({relative} is looked for there)")
    path = Path(root).expanduser() / relative
    if not path.is_file():
        raise Unavailable(f"no file {relative} under GATKERNELS_DATA")
    return path


@contextmanager
def reading(relative: str) -> Iterator[Path]:
    """A file under `$GATKERNELS_DATA`, whose content the block reads. Raises: Unavailable."""
    path = data_file(relative)
    try:
        yield path
    except Exception as error:  # a damaged file can raise anything
        raise Unavailable(f"{path}: cannot be read: {error}") from error


class _AdjacencyUnpickler(pickle.Unpickler):
    """Reads a Planetoid adjacency, a dict of lists, and runs nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "defaultdict"):
            return lambda *_: {}
        if (module, name) in {("__builtin__", "list"), ("builtins", "list")}:
            return list
        raise pickle.UnpicklingError(f"unexpected {module}.{name} in a Planetoid file")


def _neighbours(path: Path) -> dict[int, list[int]]:
    with path.open("rb") as file:
        found: dict[int, list[int]] = _AdjacencyUnpickler(file, encoding="latin1").load()
    return found


def _planetoid(title: str) -> Edges:
    with reading(f"planetoid/{title}/raw/ind.{title.lower()}.graph") as path:
        neighbours = _neighbours(path)
    counts = [len(row) for row in neighbours.values()]
    src = np.repeat(np.fromiter(neighbours, dtype=np.int64), counts)
    dst = np.array([j for row in neighbours.values() for j in row], dtype=np.int64)
    return _square(generate.symmetric(src, dst, len(neighbours)), len(neighbours), "real")


def _physics() -> Edges:
    with reading("coauthor/Physics/raw/ms_academic_phy.npz") as path, np.load(path) as file:
        return _from_csr(file["adj_indptr"], file["adj_indices"])


def _cnr2000() -> Edges:
    with reading("graphs/cnr-2000.npz") as path, np.load(path) as file:
        return _from_csr(file["indptr"], file["indices"])


def _from_csr(indptr: Any, indices: Any) -> Edges:
    num_nodes = indptr.size - 1
    src = np.repeat(np.arange(num_nodes, dtype=np.int64), np.diff(indptr))
    return _square(generate.symmetric(src, indices.astype(np.int64), num_nodes), num_nodes, "real")


def _tolokers() -> Edges:
    with reading("heterophilous/tolokers/raw/tolokers.npz") as path, np.load(path) as file:
        links, num_nodes = file["edges"].astype(np.int64), len(file["node_features"])
    return _square(generate.symmetric(links[:, 0], links[:, 1], num_nodes), num_nodes, "real")


def _gowalla() -> Edges:
    with reading("graphs/gowalla.npz") as path, np.load(path) as file:
        users = np.concatenate([file["train_user"], file["test_user"]]).astype(np.int64)
        items = np.concatenate([file["train_item"], file["test_item"]]).astype(np.int64)
        counts = int(file["num_users"]), int(file["num_items"])
    keys = generate.distinct(users * counts[1] + items)
    edges = np.stack([keys // counts[1], keys % counts[1]])
    return Edges(torch.from_numpy(edges), *counts, "real, bipartite: users to places")


def _ohmnet(count: int = 20) -> Edges:
    """The first `count` tissues as one batch."""
    with reading("graphs/ohmnet_tissues.npz") as path, np.load(path) as file:
        node_ptr, edge_ptr = file["node_ptr"], file["edge_ptr"]
        stop = int(edge_ptr[count])
        tissue = np.repeat(np.arange(count), np.diff(edge_ptr[: count + 1]))
        src, dst = (file[end][:stop].astype(np.int64) + node_ptr[tissue] for end in ("src", "dst"))
    num_nodes = int(node_ptr[count])
    note = f"real, a batch of {count} tissues"
    return _square(generate.symmetric(src, dst, num_nodes), num_nodes, note)


def _square(edges: IntArray, num_nodes: int, note: str) -> Edges:
    return Edges(torch.from_numpy(edges), num_nodes, num_nodes, note)


def _twin(
    name: str, num_nodes: int, build: Callable[[int, float], IntArray], note: str
) -> Callable[[float], Edges]:
    """A generated graph: `build(nodes, scale)` at a scale of the original's nodes and edges."""

    def load(scale: float) -> Edges:
        count = max(round(num_nodes * scale), 64)
        key = name if scale == 1 else f"{name}-{scale:.6g}"
        try:
            return _square(cached(key, lambda: build(count, scale)), count, note)
        except ValueError as error:
            raise Unavailable(f"no {name} at scale {scale:g}: {error}") from error

    return load


def _skewed(nodes: int, arcs: int, top: int, loops: bool = False) -> Callable[..., IntArray]:
    def build(count: int, scale: float) -> IntArray:
        edges = generate.power_law(count, round(arcs * scale / 2) * 2, top)
        return generate.with_loops(edges, count) if loops else edges

    return build


ARXIV = (169_343, 2_315_598, 13_161)  # nodes, arcs, largest degree of ogbn-arxiv made symmetric


def _ppi(num_nodes: int, scale: float) -> IntArray:
    return generate.batch(max(num_nodes // 2_245, 1), min(num_nodes, 2_245), 61_318, 720)


def _arxiv_communities(count: int, scale: float) -> IntArray:
    edges = generate.communities(count, round(ARXIV[1] * scale / 2) * 2, ARXIV[2])
    return generate.with_loops(edges, count)


def _generated(
    name: str,
    nodes: int,
    edges: int,
    build: Callable[[int, float], IntArray],
    note: str,
    channels: tuple[int, int],
) -> GraphSpec:
    return GraphSpec(_twin(name, nodes, build, note), *channels, edges, generated=True)


def _real(read: Callable[[], Edges], edges: int, channels: tuple[int, int]) -> GraphSpec:
    return GraphSpec(lambda scale: read(), *channels, edges)


_TWIN = "generated with the size and skew of {}"
GRAPHS: dict[str, GraphSpec] = {
    "cora": _real(lambda: _planetoid("Cora"), 10_556, (1433, 7)),
    "citeseer": _real(lambda: _planetoid("CiteSeer"), 9_104, (3703, 6)),
    "pubmed": _real(lambda: _planetoid("PubMed"), 88_648, (500, 3)),
    "tolokers": _real(_tolokers, 1_038_000, (10, 2)),
    "physics": _real(_physics, 495_924, (64, 5)),
    "cnr-2000": _real(_cnr2000, 5_477_938, (64, 8)),
    "gowalla": _real(_gowalla, 1_027_370, (64, 8)),
    "ohmnet": _real(_ohmnet, 987_810, (50, 121)),
    "arxiv": _generated("arxiv", ARXIV[0], 2_484_941, _skewed(*ARXIV, loops=True),
                        _TWIN.format("ogbn-arxiv, self loops included"), (128, 40)),
    "reddit": _generated("reddit", 232_965, 114_615_892, _skewed(232_965, 114_615_892, 21_657),
                         _TWIN.format("Reddit"), (602, 41)),
    "products": _generated("products", 2_449_029, 123_718_280,
                           _skewed(2_449_029, 123_718_280, 17_481),
                           _TWIN.format("ogbn-products"), (100, 47)),
    "proteins": _generated("proteins", 132_534, 79_122_504, _skewed(132_534, 79_122_504, 7_750),
                           _TWIN.format("ogbn-proteins"), (8, 112)),
    "ppi": _generated("ppi", 44_900, 1_226_360, _ppi,
                      "generated, a batch of 20 graphs of PPI's size", (50, 121)),
    "hub": _generated("hub", 250_000, 499_998, lambda count, scale: generate.one_hub(count),
                      "one node linked with all others, both ways", (64, 8)),
    "uniform": _generated("uniform", ARXIV[0], 2_484_941,
                          lambda count, scale: generate.uniform(count, round(2_484_941 * scale)),
                          "uniformly random, as large as arxiv", (128, 40)),
    "communities": _generated("communities", ARXIV[0], 2_484_941, _arxiv_communities,
                              "as large as arxiv, nine links in ten within 512 consecutive ids",
                              (128, 40)),
    "communities-shuffled": _generated(
        "communities-shuffled", ARXIV[0], 2_484_941,
        lambda count, scale: generate.shuffled(_arxiv_communities(count, scale), count),
        "the same graph as communities, ids dealt at random", (128, 40)),
}  # fmt: skip
