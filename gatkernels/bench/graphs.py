"""Benchmark cases: a graph, its features and the layer that runs on it."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

RMAT_PROBABILITIES = (0.57, 0.19, 0.19, 0.05)
SEED = 0

IntArray = npt.NDArray[np.int64]


class Unavailable(Exception):
    """A case cannot be built here; the message is the reason."""


@dataclass(frozen=True)
class Weights:
    """The layer's parameters, under PyG's names."""

    lin: Tensor  # [H * C, in_channels]
    att_src: Tensor  # [1, H, C]
    att_dst: Tensor  # [1, H, C]
    bias: Tensor  # [H * C]


@dataclass(frozen=True)
class Case:
    """One layer on one graph. No self loops are added, and `x` is data: it needs no gradient."""

    name: str
    edge_index: Tensor  # [2, E] int64, sources then destinations
    x: Tensor  # [N, in_channels] float32
    heads: int
    channels: int
    note: str

    @property
    def num_nodes(self) -> int:
        return self.x.shape[0]

    @property
    def num_edges(self) -> int:
        return self.edge_index.shape[1]

    @property
    def in_channels(self) -> int:
        return self.x.shape[1]

    @property
    def shape(self) -> str:
        return f"{self.in_channels} -> {self.heads}x{self.channels}"

    @cached_property
    def weights(self) -> Weights:
        """Seeded weights of unit-variance outputs, the same for every peer."""
        generator = torch.Generator().manual_seed(SEED + 1)
        width = self.heads * self.channels
        energy = float(self.x.square().sum(1).mean()) or 1.0
        lin = torch.randn(width, self.in_channels, generator=generator) / energy**0.5
        att = torch.randn(2, 1, self.heads, self.channels, generator=generator) / self.channels**0.5
        bias = torch.randn(width, generator=generator)
        return Weights(lin, att[0].clone(), att[1].clone(), bias)

    @cached_property
    def grad_out(self) -> Tensor:
        """Gradient of the layer's output, `[N, H * C]`."""
        return features(self.num_nodes, self.heads * self.channels, SEED + 2)


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


def data_file(relative: str) -> Path:
    """A file under `$GATKERNELS_DATA`; raises Unavailable when it is not there."""
    root = os.environ.get("GATKERNELS_DATA")
    if not root:
        raise Unavailable(f"GATKERNELS_DATA is not set ({relative} is looked for there)")
    path = Path(root).expanduser() / relative
    if not path.is_file():
        raise Unavailable(f"no file {relative} under GATKERNELS_DATA")
    return path


def cached(name: str, build: Callable[[], IntArray]) -> IntArray:
    """The edges [2, E] stored under `name`; built and written where missing or unreadable."""
    path = cache_dir() / "graphs" / f"{name}.npy"
    try:
        stored: IntArray = np.load(path).astype(np.int64)
        return stored
    except (OSError, ValueError, EOFError):
        edges = build()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        with partial.open("wb") as file:
            np.save(file, edges.astype(np.int32))
        partial.replace(path)
    except OSError as error:
        print(f"graph not cached: {error}", file=sys.stderr)
    return edges


def coalesce(src: IntArray, dst: IntArray, num_nodes: int) -> IntArray:
    """Edges [2, E] sorted by source, each once, without self loops."""
    keys = np.unique((src * num_nodes + dst)[src != dst])
    return np.stack([keys // num_nodes, keys % num_nodes])


def rmat(scale: int, num_edges: int, seed: int = SEED) -> IntArray:
    """A simple directed R-MAT graph of 2**scale nodes with exactly `num_edges` edges.

    Nodes are relabelled at random, so that the degree is not readable from the id. Edges are
    sorted by source, as PyG's `coalesce` leaves them.
    """
    num_nodes = 2**scale
    if num_edges > num_nodes * (num_nodes - 1) // 8:
        raise ValueError(f"rmat: {num_edges} edges are too many for {num_nodes} nodes")
    rng = np.random.default_rng(seed)
    a, b, c, _ = RMAT_PROBABILITIES
    keys = np.empty(0, dtype=np.int64)
    while keys.size < num_edges:
        count = num_edges // 4 + 16 if keys.size else num_edges + num_edges // 8 + 16
        src = np.zeros(count, dtype=np.int64)
        dst = np.zeros(count, dtype=np.int64)
        for _ in range(scale):
            draw = rng.random(count, dtype=np.float32)
            src = 2 * src + (draw >= a + b)
            dst = 2 * dst + (((draw >= a) & (draw < a + b)) | (draw >= a + b + c))
        keys = np.unique(np.concatenate([keys, (src * num_nodes + dst)[src != dst]]))
    keys = rng.permutation(keys)[:num_edges]
    label = rng.permutation(num_nodes)
    return coalesce(label[keys // num_nodes], label[keys % num_nodes], num_nodes)


def symmetric(indptr: npt.NDArray[Any], indices: npt.NDArray[Any]) -> IntArray:
    """Both directions of a CSR graph's links, each once, without self loops."""
    num_nodes = indptr.size - 1
    src = np.repeat(np.arange(num_nodes, dtype=np.int64), np.diff(indptr))
    dst = indices.astype(np.int64)
    return coalesce(np.concatenate([src, dst]), np.concatenate([dst, src]), num_nodes)


class _SparseState:
    """Receives the fields of a pickled scipy matrix, so that scipy is not needed."""

    data: npt.NDArray[np.float32]
    indices: npt.NDArray[np.int32]
    indptr: npt.NDArray[np.int32]
    _shape: tuple[int, int]

    def dense(self) -> npt.NDArray[np.float32]:
        rows = np.repeat(np.arange(self._shape[0]), np.diff(self.indptr))
        matrix = np.zeros(self._shape, dtype=np.float32)
        matrix[rows, self.indices] = self.data
        return matrix


class _PlanetoidUnpickler(pickle.Unpickler):
    """Reads the Planetoid pickles and nothing else: numpy arrays, CSR matrices, dicts of lists."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("scipy.sparse") and name == "csr_matrix":
            return _SparseState
        if name == "_reconstruct" and module.startswith("numpy"):
            return np.ndarray.__reduce__(np.empty(0))[0]
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if (module, name) == ("collections", "defaultdict"):
            return lambda *_: {}
        if module in {"__builtin__", "builtins"} and name in {"list", "object"}:
            return {"list": list, "object": object}[name]
        if module == "copy_reg" and name == "_reconstructor":
            return lambda cls, *_: cls()
        raise pickle.UnpicklingError(f"unexpected {module}.{name} in a Planetoid file")


def planetoid(name: str) -> tuple[IntArray, npt.NDArray[np.float32]]:
    """Edges [2, E] and row-normalised features [N, F] of a set under `$GATKERNELS_DATA`."""

    def read(part: str) -> Any:
        with data_file(f"planetoid/{name}/raw/ind.{name.lower()}.{part}").open("rb") as file:
            return _PlanetoidUnpickler(file).load()

    neighbours: dict[int, list[int]] = read("graph")
    num_nodes = len(neighbours)
    src = np.repeat(
        np.fromiter(neighbours, dtype=np.int64), [len(row) for row in neighbours.values()]
    )
    dst = np.array([j for row in neighbours.values() for j in row], dtype=np.int64)
    edges = coalesce(np.concatenate([src, dst]), np.concatenate([dst, src]), num_nodes)

    known, test = read("allx").dense(), read("tx").dense()
    order = np.loadtxt(
        data_file(f"planetoid/{name}/raw/ind.{name.lower()}.test.index"), dtype=np.int64
    )
    x = np.zeros((num_nodes, known.shape[1]), dtype=np.float32)
    x[: known.shape[0]] = known
    x[order] = test
    return edges, x / np.maximum(x.sum(axis=1, keepdims=True), 1.0)


def features(num_nodes: int, channels: int, seed: int = SEED) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_nodes, channels, generator=generator)


def cora() -> Case:
    """Cora's first layer; where its files are absent, random data of equal shape."""
    try:
        edges, x = planetoid("Cora")
        note = "real Cora"
    except Unavailable as reason:
        rng = np.random.default_rng(SEED)
        links = rng.integers(0, 2708, size=(2, 5400))
        edges = coalesce(
            np.concatenate([links[0], links[1]]), np.concatenate([links[1], links[0]]), 2708
        )
        x = (rng.random((2708, 1433)) < 0.0127).astype(np.float32)
        x /= np.maximum(x.sum(axis=1, keepdims=True), 1.0)
        note = f"random graph of Cora's shape: {reason}"
    return Case("cora", torch.from_numpy(edges), torch.from_numpy(x), 8, 8, note)


def arxiv() -> Case:
    edges = cached(f"rmat-17-1200000-{SEED}", lambda: rmat(17, 1_200_000))
    return Case("arxiv", torch.from_numpy(edges), features(2**17, 128), 8, 16, "R-MAT")


def products() -> Case:
    edges = cached(f"rmat-18-8000000-{SEED}", lambda: rmat(18, 8_000_000))
    return Case("products", torch.from_numpy(edges), features(2**18, 64), 8, 8, "R-MAT")


def cnr2000() -> Case:
    path = data_file("graphs/cnr-2000.npz")

    def build() -> IntArray:
        with np.load(path) as file:
            return symmetric(file["indptr"], file["indices"])

    edges = cached("cnr-2000-symmetric", build)
    return Case("cnr-2000", torch.from_numpy(edges), features(325_557, 64), 8, 8, "real web graph")


def tiny() -> Case:
    """For warm-up and tests: parallel edges, self loops, a hub and isolated nodes included."""
    rng = np.random.default_rng(SEED)
    edges = rng.integers(0, 60, size=(2, 400))
    edges[1, :100] = 7
    edges[:, 100:110] = edges[:, :10]
    return Case("tiny", torch.from_numpy(edges), features(64, 12), 4, 3, "random")


CASES: dict[str, Callable[[], Case]] = {
    "cora": cora,
    "arxiv": arxiv,
    "products": products,
    "cnr-2000": cnr2000,
}
