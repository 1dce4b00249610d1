"""``gatkernels partition``: an edge list larger than memory, cut into the parts of ranks.

Two passes over the list, a block of edges in memory at a time; besides, a few numbers per node.
METIS alone wants the whole graph.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from gatkernels.distributed import partition
from gatkernels.distributed.files import MANIFEST, OWNERS, Array, Column, Manifest, Part
from gatkernels.ops import checks

METHODS = ("range", "metis", "random")
EDGES = 1 << 22  # of a block
MOST_PARTS = 1 << 15  # owners are sorted as 16-bit numbers, by radix
COLUMNS = ("src", "dst", "ids")
SIDES = ("in", "out")

#: Called with what is being done, and how many of how many edges it is done for.
Tell = Callable[[str, int, int], None]


class EdgeFile(NamedTuple):
    """A NumPy file ``[2, E]`` of int32 or int64, sources first: OGB's layout."""

    path: Path
    dtype: np.dtype[Any]
    num_edges: int
    offset: int  # bytes before the first number
    pairs: bool  # in Fortran's order, which is pair by pair

    @classmethod
    def open(cls, path: Path) -> EdgeFile:
        """Raises: OSError, TypeError, ValueError: what the file is instead."""
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError:
            raise
        except Exception as error:  # a damaged file can raise anything
            raise ValueError(f"{path}: cannot be read as a NumPy array: {error}") from error
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{path}: must hold one array (.npy), got an archive of several")
        if array.dtype not in (np.dtype(np.int32), np.dtype(np.int64)):
            raise TypeError(f"{path}: must have dtype int32 or int64, got {array.dtype}")
        if array.ndim != 2 or array.shape[0] != 2:
            turned = "; save its transpose" if array.ndim == 2 and array.shape[1] == 2 else ""
            raise ValueError(f"{path}: must have shape [2, num_edges], got {array.shape}{turned}")
        pairs = not array.flags.c_contiguous
        return cls(path, array.dtype, array.shape[1], getattr(array, "offset", 0), pairs)

    def blocks(self, num_nodes: int) -> Iterator[tuple[int, Array, Array]]:
        """The place of each block's first edge, its sources and its destinations.

        Read, not mapped: pages of a mapped file count as this process's memory.

        Raises: ValueError: a node id is out of range; the file has become shorter.
        """
        with self.path.open("rb") as file:
            for first in range(0, self.num_edges, EDGES):
                count = min(EDGES, self.num_edges - first)
                if self.pairs:
                    both = self._numbers(file, 2 * first, 2 * count).reshape(count, 2).T
                    src, dst = np.ascontiguousarray(both)
                else:
                    src = self._numbers(file, first, count)
                    dst = self._numbers(file, self.num_edges + first, count)
                for side, ids in enumerate((src, dst)):
                    self._check(f"edges[{side}]", ids, first, num_nodes)
                yield first, src, dst

    def _numbers(self, file: Any, first: int, count: int) -> Array:
        file.seek(self.offset + first * self.dtype.itemsize)
        found = np.fromfile(file, self.dtype, count)
        if len(found) != count:
            raise ValueError(f"{self.path}: became shorter while it was read")
        return found

    def _check(self, name: str, ids: Array, first: int, num_nodes: int) -> None:
        if ids.min() < 0 or ids.max() >= num_nodes:
            place = int(((ids < 0) | (ids >= num_nodes)).argmax())
            raise checks.node_id_out_of_range(
                str(self.path), name, int(ids[place]), first + place, num_nodes
            )


class ColumnFile:
    """A file that grows, and what the manifest says of it. Opened for each block: there are more
    of them than a process may hold open."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self.path, self.dtype = path, np.dtype(dtype)
        self.count, self.sha = 0, hashlib.sha256()
        path.touch()

    def append(self, values: Array) -> None:
        values = np.ascontiguousarray(values, self.dtype)
        try:
            with self.path.open("ab", buffering=0) as file:
                rest = values.data.cast("B")
                while rest:  # a disk that is nearly full takes a part
                    rest = rest[file.write(rest) :]
        except OSError as error:  # which names no file where writing failed
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.sha.update(values.data)
        self.count += len(values)

    def column(self) -> Column:
        return Column(self.count, self.dtype.name, self.sha.hexdigest())


def partition_file(
    path: Path,
    num_nodes: int,
    parts: int,
    method: str,
    out: Path,
    seed: int = 0,
    tell: Tell = lambda text, done, total: None,
) -> Manifest:
    """Write ``out``, a folder for :meth:`gatkernels.distributed.ShardedGraph.load`.

    It appears by a rename when all of it is there; what goes wrong before leaves nothing.

    Args:
        path: The edges, see :class:`EdgeFile`; an edge's id is its place there.
        num_nodes: Node ids lie in ``[0, num_nodes)``.
        parts: How many, one for each process that will load them.
        method: "range" (consecutive nodes, balanced by edges), "metis" or "random".
        out: The folder to write; it must not be there yet, or be empty.
        seed: Of "random".
        tell: Is told how far it is.

    Raises:
        TypeError, ValueError: A wrong argument or file; the message names it, and the place.
        MissingExtraError: "metis" without pymetis.
        OSError: A file cannot be read or written: no space is left, for example.
    """
    checks.node_count("partition", "num_nodes", num_nodes)
    if method not in METHODS:
        raise ValueError(f"partition: 'method' must be one of {', '.join(METHODS)}, got '{method}'")
    if not 1 <= parts < MOST_PARTS:
        raise ValueError(f"partition: 'parts' must lie in [1, {MOST_PARTS}), got {parts}")
    edges = EdgeFile.open(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: is there already; name another folder or remove it")
    id_dtype = np.dtype(np.int32 if edges.num_edges < 2**31 else np.int64)
    with _appearing(out) as work:
        _check_space(work, edges.num_edges * 2 * (8 + id_dtype.itemsize) + 8 * num_nodes)
        owners = _owners(edges, num_nodes, parts, method, seed, tell)
        files = [_part_files(work, rank, id_dtype) for rank in range(parts)]
        for first, src, dst in edges.blocks(num_nodes):
            ids = np.arange(first, first + len(src), dtype=id_dtype)
            for side, ends in (("in", dst), ("out", src)):
                _deal(files, side, _owner_of(owners, ends), (src, dst, ids))
            tell("dealing edges", first + len(src), edges.num_edges)
        manifest = _finish(work, files, owners, edges.num_edges, method, tell)
        (work / MANIFEST).write_text(manifest.text())
    return manifest


class Owners(NamedTuple):
    """``bounds [parts + 1]`` int64 of ranges, or the owner of each node, ``[num_nodes]`` int32."""

    num_nodes: int
    bounds: Array | None
    table: Array | None

    def nodes(self, rank: int) -> Array:
        if self.bounds is not None:
            return np.arange(*self.bounds[rank : rank + 2])
        found: Array = np.flatnonzero(self.table == rank)
        return found


def _owners(
    edges: EdgeFile, num_nodes: int, parts: int, method: str, seed: int, tell: Tell
) -> Owners:
    if method == "random":
        return Owners(num_nodes, None, partition.random_owners(num_nodes, parts, seed).numpy())
    if method == "metis":
        whole = torch.empty(2, edges.num_edges, dtype=torch.int32)
        for first, src, dst in edges.blocks(num_nodes):
            whole[0, first : first + len(src)] = torch.from_numpy(src)
            whole[1, first : first + len(src)] = torch.from_numpy(dst)
            tell("reading the graph for METIS", first + len(src), edges.num_edges)
        return Owners(num_nodes, None, partition.owners_by_metis(whole, num_nodes, parts).numpy())
    degrees = np.zeros(num_nodes, np.int32 if 2 * edges.num_edges < 2**31 else np.int64)
    for first, src, dst in edges.blocks(num_nodes):
        np.add.at(degrees, src, 1)
        np.add.at(degrees, dst, 1)
        tell("counting edges", first + len(src), edges.num_edges)
    return Owners(
        num_nodes, partition.bounds_by_edges(torch.from_numpy(degrees), parts).numpy(), None
    )


def _owner_of(owners: Owners, nodes: Array) -> Array:
    """As 16-bit numbers."""
    if owners.bounds is not None:
        found: Array = np.searchsorted(owners.bounds[1:-1], nodes, side="right").astype(np.uint16)
        return found
    assert owners.table is not None
    return owners.table[nodes].astype(np.uint16)


def _part_files(work: Path, rank: int, id_dtype: Any) -> dict[str, ColumnFile]:
    folder = work / f"part-{rank:05}"
    folder.mkdir()
    return {
        f"{side}_{name}": ColumnFile(folder / f"{side}_{name}", id_dtype if name == "ids" else "i4")
        for side in SIDES
        for name in COLUMNS
    }


def _deal(
    files: list[dict[str, ColumnFile]], side: str, owner: Array, columns: tuple[Array, ...]
) -> None:
    """Append each edge to its owner's columns, in the order they come in."""
    order = np.argsort(owner, kind="stable")
    ends = np.cumsum(np.bincount(owner, minlength=len(files)))
    for name, values in zip(COLUMNS, columns, strict=True):
        dealt = values[order]
        for rank, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            if start < end:
                files[rank][f"{side}_{name}"].append(dealt[start:end])


def _finish(
    work: Path,
    files: list[dict[str, ColumnFile]],
    owners: Owners,
    num_edges: int,
    method: str,
    tell: Tell,
) -> Manifest:
    """Nodes of the parts, their halos, and the manifest."""
    parts, total = [], 2 * num_edges
    done = 0
    for rank, columns in enumerate(files):
        nodes = owners.nodes(rank)
        halo = []
        for side, end in (("in", "src"), ("out", "dst")):
            met = np.zeros(owners.num_nodes, bool)
            column = columns[f"{side}_{end}"]
            with column.path.open("rb") as file:
                while len(block := np.fromfile(file, column.dtype, EDGES)):
                    met[block] = True
                    done += len(block)
                    tell("counting halos", done, total)
            met[nodes] = False
            halo.append(int(np.count_nonzero(met)))
        if owners.table is not None:
            columns["nodes"] = ColumnFile(columns["in_ids"].path.with_name("nodes"), "i4")
            columns["nodes"].append(nodes)
        parts.append(
            Part(
                folder=columns["in_ids"].path.parent.name,
                nodes=len(nodes),
                in_edges=columns["in_ids"].count,
                out_edges=columns["out_ids"].count,
                halo=(halo[0], halo[1]),
                columns={name: file.column() for name, file in columns.items()},
            )
        )
    table = None
    if owners.table is not None:
        table = ColumnFile(work / OWNERS, "i4")
        table.append(owners.table)
    return Manifest(
        num_nodes=owners.num_nodes,
        num_edges=num_edges,
        method=method,
        parts=parts,
        bounds=None if owners.bounds is None else owners.bounds.tolist(),
        owners=None if table is None else table.column(),
    )


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that becomes it when the block ends well, and goes otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(f".{out.name}-{os.getpid()}")
    work.mkdir()
    try:
        yield work
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_space(folder: Path, needed: int) -> None:
    """Before hours are spent. Raises: OSError."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{needed / 2**30:,.2f} GiB are needed, {free / 2**30:,.2f} GiB are free",
            str(folder.parent),
        )
