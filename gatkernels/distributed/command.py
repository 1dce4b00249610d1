"""``gatkernels partition``: its options, its bar, and the table it prints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gatkernels.distributed import partition, stream
from gatkernels.distributed.files import Manifest
from gatkernels.distributed.stream import Tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("edges", type=Path, metavar="EDGES.npy", help="[2, E], int32 or int64")
    parser.add_argument("--nodes", type=int, required=True, metavar="N", help="number of nodes")
    parser.add_argument("--parts", type=int, required=True, metavar="P", help="one per process")
    parser.add_argument(
        "--method",
        choices=stream.METHODS,
        default="range",
        help="consecutive nodes, METIS, or chance (range)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of --method random (0)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Raises: what :func:`stream.partition_file` raises."""
    if args.method == "metis" and not args.quiet:
        edges = stream.EdgeFile.open(args.edges).num_edges
        per_edge, per_node = partition.METIS_BYTES
        need = (per_edge * edges + per_node * max(args.nodes, 0)) / 2**30
        print(f"METIS holds the whole graph in memory, here about {need:.1f} GiB", file=sys.stderr)
    with _bar(args.quiet) as tell:
        manifest = stream.partition_file(
            args.edges, args.nodes, args.parts, args.method, args.out, args.seed, tell
        )
    print(table(manifest))
    print(f"wrote {len(manifest.parts)} parts to {args.out}")
    return 0


def table(manifest: Manifest) -> str:
    """What each rank gets: rho is its halo over its own rows, the less the better."""
    rows: list[tuple[str, ...]] = [
        ("part", "nodes", "edges in", "edges out", "halo in", "halo out", "rho")
    ]
    for rank, part in enumerate(manifest.parts):
        numbers = (part.nodes, part.in_edges, part.out_edges, *part.halo)
        rows.append((str(rank), *(f"{number:,}" for number in numbers), f"{part.rho:.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


@contextmanager
def _bar(quiet: bool) -> Iterator[Tell]:
    """A bar on stderr for what is being done; a line for each where that is no terminal."""
    try:
        from rich import progress as bars
        from rich.console import Console
    except ImportError:
        bars = None  # type: ignore[assignment]
    seen: dict[str, Any] = {}
    if quiet:
        yield lambda text, done, total: None
        return
    if bars is None or not sys.stderr.isatty():

        def line(text: str, done: int, total: int) -> None:
            if text not in seen:
                seen[text] = print(f"{text} ...", file=sys.stderr, flush=True)

        yield line
        return
    columns = (
        bars.TextColumn("{task.description:>28}"),
        bars.BarColumn(bar_width=24),
        bars.TaskProgressColumn(),
        bars.TextColumn("{task.completed:,.0f} edges"),
        bars.TimeRemainingColumn(elapsed_when_finished=True),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as bar:

        def show(text: str, done: int, total: int) -> None:
            if text not in seen:
                seen[text] = bar.add_task(text, total=total)
            bar.update(seen[text], completed=done)

        yield show
