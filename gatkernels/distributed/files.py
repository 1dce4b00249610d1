"""A partitioned graph on disk: what ``gatkernels partition`` writes, and a rank's way to its part.

A folder holds ``manifest.json``, the owners of all nodes (where they are no ranges), and a folder
for each rank: plain columns of integers, of the edges into its nodes (``in_src``, ``in_dst``,
``in_ids``) and out of them (``out_src``, ``out_dst``, ``out_ids``), both by ascending id, and its
``nodes`` (where they are no range). The manifest knows the SHA-256 of every file, so that nothing
damaged, half copied or of another partition is taken for a part.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatkernels.distributed.peers import Peers
from gatkernels.distributed.share import Share

FORMAT = 1
MANIFEST = "manifest.json"
OWNERS = "owners"
BLOCK = 1 << 24  # bytes hashed at a time

Array = NDArray[Any]


@dataclass(frozen=True)
class Column:
    """A file of integers: how many, of which dtype, and its SHA-256."""

    count: int
    dtype: str
    sha256: str


@dataclass(frozen=True)
class Part:
    """A rank's folder. ``halo``: nodes of others that its edges come from, and go to."""

    folder: str
    nodes: int
    in_edges: int
    out_edges: int
    halo: tuple[int, int]
    columns: dict[str, Column]

    @property
    def rho(self) -> float:
        """Halo rows over own rows, of the larger halo."""
        return max(self.halo) / max(self.nodes, 1)


@dataclass(frozen=True)
class Manifest:
    """What a folder says of itself; ``bounds`` where nodes are owned in ranges, else ``owners``."""

    num_nodes: int
    num_edges: int
    method: str
    parts: list[Part]
    bounds: list[int] | None = None
    owners: Column | None = None
    format: int = field(default=FORMAT)

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def read_manifest(folder: str | Path) -> Manifest:
    """Raises: ValueError, FileNotFoundError: the folder holds no partition, and why."""
    path = Path(folder) / MANIFEST
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder}: no partitioned graph, {MANIFEST} is missing; "
            "write one with gatkernels partition"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, expected {FORMAT}")
        content["parts"] = [_part(part) for part in content["parts"]]
        if content["owners"] is not None:
            content["owners"] = Column(**content["owners"])
        manifest = Manifest(**content)
        _check_counts(manifest)
        return manifest
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not written by this version of gatkernels ({error})") from error


def _check_counts(manifest: Manifest) -> None:
    """Counts are those of columns, whose files' sizes are compared before memory is taken.

    Raises: KeyError, TypeError, ValueError.
    """
    nodes = manifest.num_nodes
    if not 0 <= nodes < 2**31:
        raise ValueError(f"{nodes} nodes")
    columns = [column for part in manifest.parts for column in part.columns.values()]
    columns += [manifest.owners] if manifest.owners is not None else []
    for column in columns:
        if column.dtype not in ("int32", "int64"):
            raise ValueError(f"a column of {column.dtype}")
    for part in manifest.parts:
        for side, count in (("in", part.in_edges), ("out", part.out_edges)):
            found = [part.columns[f"{side}_{end}"].count for end in ("src", "dst", "ids")]
            if found != [count] * 3:
                raise ValueError(f"{count} edges in columns of {found}")
    bounds = manifest.bounds
    if bounds is None:
        counts = [part.columns["nodes"].count for part in manifest.parts]
        owned = None if manifest.owners is None else manifest.owners.count
        if owned != nodes or sum(counts) != nodes:
            raise ValueError(f"{nodes} nodes in columns of {owned} and {counts}")
    elif sorted(bounds) != bounds or bounds[:1] + bounds[-1:] != [0, nodes]:
        raise ValueError(f"bounds that do not rise from 0 to {nodes}")
    elif len(bounds) != len(manifest.parts) + 1:
        raise ValueError(f"{len(bounds)} bounds of {len(manifest.parts)} parts")


def _part(content: dict[str, Any]) -> Part:
    columns = {name: Column(**column) for name, column in content.pop("columns").items()}
    return Part(**{**content, "halo": tuple(content["halo"])}, columns=columns)


def read_share(folder: str | Path, rank: int, size: int) -> Share:
    """The part of one rank, and of no other; ids become int64.

    Args:
        folder: What ``gatkernels partition`` wrote.
        rank, size: Of the process, and how many there are.

    Raises:
        ValueError: There are not ``size`` parts; a file is not the one that was written.
        FileNotFoundError: The folder holds no partition, or not this part.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if len(manifest.parts) != size:
        raise ValueError(
            f"{folder}: holds {len(manifest.parts)} parts, but there are {size} processes; start "
            f"{len(manifest.parts)}, or write {size} parts with gatkernels partition"
        )
    part = manifest.parts[rank]
    if manifest.bounds is not None:
        owners = torch.tensor(manifest.bounds, dtype=torch.int64)
        nodes = torch.arange(*manifest.bounds[rank : rank + 2])
    else:
        assert manifest.owners is not None
        owners = _mapped(folder / OWNERS, manifest.owners)
        nodes = _read(folder / part.folder / "nodes", part.columns["nodes"]).long()
    edges, ids = {}, {}
    for name, column in part.columns.items():  # before there is memory for them
        _check_size(folder / part.folder / name, column)
    for side, count in (("in", part.in_edges), ("out", part.out_edges)):
        edges[side] = torch.empty(2, count, dtype=torch.int64)
        for row, end in enumerate(("src", "dst")):
            name = f"{side}_{end}"
            edges[side][row] = _read(folder / part.folder / name, part.columns[name])
        name = f"{side}_ids"
        ids[side] = _read(folder / part.folder / name, part.columns[name]).long()
    return Share(
        nodes=nodes,
        num_nodes=manifest.num_nodes,
        num_edges=manifest.num_edges,
        owners=owners,
        in_edges=edges["in"],
        in_ids=ids["in"],
        out_edges=edges["out"],
        out_ids=ids["out"],
    )


def load_share(
    op: str, folder: str | Path, peers: Peers, device: torch.device | str = "cpu"
) -> Share:
    """:func:`read_share` of every rank; what is wrong on one of them is raised on all."""
    error: Exception | None = None
    try:
        share = read_share(folder, peers.rank, peers.size)
        written = (Path(folder) / MANIFEST).read_bytes()
    except (ValueError, OSError) as found:
        error = type(found)(f"{op}: {found}")
    peers.together(error, op)
    peers.agree(f"a manifest of SHA-256 {hashlib.sha256(written).hexdigest()}", op)
    moved: dict[str, Any] = {
        name: value.to(device)
        for name, value in share._asdict().items()
        if isinstance(value, Tensor)
    }
    return share._replace(**moved)


def _read(path: Path, column: Column) -> Tensor:
    _check_size(path, column)
    values: Array = np.fromfile(path, column.dtype)
    _check_digest(path, column, hashlib.sha256(values.data).hexdigest())
    return torch.from_numpy(values)


def _mapped(path: Path, column: Column) -> Tensor:
    """The file as memory of which only what is looked at takes space."""
    _check_size(path, column)
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            sha.update(block)
    _check_digest(path, column, sha.hexdigest())
    return torch.from_file(
        str(path), shared=False, size=column.count, dtype=getattr(torch, column.dtype)
    )


def _check_size(path: Path, column: Column) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: missing; the manifest names it") from error
    expected = column.count * np.dtype(column.dtype).itemsize
    if found != expected:
        raise ValueError(f"{path}: {found:,} bytes, expected {expected:,}: not copied to its end?")


def _check_digest(path: Path, column: Column, found: str) -> None:
    if found != column.sha256:
        raise ValueError(
            f"{path}: not the file that was written (SHA-256 {found[:12]}..., "
            f"expected {column.sha256[:12]}...)"
        )
