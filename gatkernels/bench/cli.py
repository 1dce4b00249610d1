"""`gatkernels bench`: time the layers against their peers."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from gatkernels import backends, disk
from gatkernels.bench import adapters as _adapters  # noqa: F401 (registers the peers)
from gatkernels.bench import (
    cases,
    charts,
    compare,
    curves,
    minibatch,
    report,
    results,
    run,
    sharded,
    targets_run,
)
from gatkernels.bench.graphs import GRAPHS
from gatkernels.bench.peers import PEERS, REFERENCE, Ours, Peer, find
from gatkernels.extras import MissingExtraError
from gatkernels.ops import checks
from gatkernels.progress import progress

DEFAULT_OUT = Path("runs/bench")
QUICK_SECONDS = 0.6
FULL_SECONDS = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gatkernels bench`."""
    parser.add_argument("--quick", action="store_true", help="a few cases, within two minutes")
    parser.add_argument(
        "--targets",
        action="store_true",
        help="instead of layers, the stated speed targets as ratios",
    )
    parser.add_argument(
        "--minibatch",
        action="store_true",
        help="instead of layers, training steps on sampled batches, PyG and accelerated",
    )
    parser.add_argument(
        "--sharded",
        action="store_true",
        help="instead of layers, one machine's shard of a graph of papers100M's size, and a plan",
    )
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="of targets (all)")
    parser.add_argument("--backends", nargs="+", metavar="NAME", help="of targets (all)")
    parser.add_argument(
        "--deadline", type=float, metavar="SECONDS", help="stop the targets then, and say where"
    )
    choice = parser.add_argument_group("cases (every combination of what is named)")
    choice.add_argument("--graphs", nargs="+", metavar="GRAPH", help=", ".join(GRAPHS))
    choice.add_argument("--shapes", nargs="+", metavar="HxC", help=", ".join(cases.SHAPES))
    choice.add_argument("--layers", nargs="+", choices=cases.LAYERS)
    choice.add_argument("--dtypes", nargs="+", choices=list(cases.DTYPES))
    choice.add_argument(
        "--scale", type=float, default=0.0, help="cut generated graphs to this part (what fits)"
    )
    choice.add_argument(
        "--peers", nargs="+", metavar="PEER", help=f"{', '.join(PEERS)}, or package.module:Class"
    )
    how = parser.add_argument_group("measuring")
    how.add_argument("--device", default="cpu", help="torch device (cpu)")
    how.add_argument("--threads", type=int, help="torch's threads (as torch chooses)")
    how.add_argument(
        "--seconds", type=float, help="of timed runs per peer and case (1; quick 0.6; targets 0.3)"
    )
    how.add_argument(
        "--memory-limit", type=float, metavar="GIB", help="per process (most of what is free)"
    )
    how.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument(
        "--curves",
        action=argparse.BooleanOptionalAction,
        help="time and memory against edges, width and threads (with the full set of cases)",
    )
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A.json", "B.json"), help="no run: two results"
    )
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="output folder (%(default)s)"
    )


@dataclass(frozen=True)
class Job:
    """What one command asks for."""

    specs: list[cases.Spec]
    peers: list[Peer] | None  # None: whoever suits a case
    settings: run.Settings
    device: str
    out: Path
    quick: bool = False
    curves: bool = False
    epoch: bool = False

    def peers_for(self, spec: cases.Spec) -> list[Peer]:
        return self.peers or peers_for(spec, self.quick)


AnyJob = Job | targets_run.Job | minibatch.Job | sharded.Job


def prepare(args: argparse.Namespace) -> AnyJob:
    """What the options ask for. Raises: ValueError naming the option."""
    for name in ("threads", "seconds", "memory_limit"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}")
    if not 0 <= args.scale <= 1:
        raise ValueError(f"--scale must be between 0 and 1, got {args.scale}")
    if args.sharded:
        return sharded.prepare(args)
    if args.minibatch:
        return minibatch.prepare(args)
    for graph in args.graphs or []:
        if graph not in GRAPHS:
            raise ValueError(f"--graphs: no graph '{graph}'; known: {', '.join(GRAPHS)}")
    for shape in args.shapes or []:
        cases.parse_shape(shape, 1)
    checks.usable_device(args.device)
    if args.targets:
        return targets_run.prepare(args)
    for name in ("kinds", "backends", "deadline"):
        if getattr(args, name):
            raise ValueError(f"--{name} goes with --targets")
    try:
        named = None if args.peers is None else [find(name) for name in args.peers]
    except (KeyError, ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"--peers: {error.args[0]}") from error
    specs = cases.choose(
        cases.QUICK if args.quick else cases.FULL,
        args.graphs,
        args.shapes,
        args.layers,
        args.dtypes,
        device=args.device,
        scale=args.scale,
    )
    threads = args.threads or torch.get_num_threads()
    limit = None if args.memory_limit is None else int(args.memory_limit * 2**30)
    seconds = args.seconds or (QUICK_SECONDS if args.quick else FULL_SECONDS)
    settings = run.Settings(threads, seconds, not args.no_memory, limit)
    chosen = any((args.graphs, args.shapes, args.layers, args.dtypes))
    everything = not (chosen or args.quick)
    curves = everything if args.curves is None else args.curves
    return Job(specs, named, settings, args.device, args.out, args.quick, curves, epoch=everything)


#: A case of more elements `[E, H, C]` leaves out, by default, the naive formulas and torch.sparse,
#: which take as long as PyG or longer. Compiling takes minutes and is left to the core cases.
HEAVY = 50_000_000


def peers_for(spec: cases.Spec, quick: bool) -> list[Peer]:
    """Who runs a case where nobody is named: everybody the device and the time have room for."""
    left_out = {name for name, peer in PEERS.items() if peer.cuda_only and spec.device == "cpu"}
    call = backends.Case(torch.device(spec.device), cases.DTYPES[spec.dtype])
    for name, peer in PEERS.items():
        if isinstance(peer, Ours) and backends.supports(peer.backend, call) is not None:
            left_out.add(name)
    core = spec.name in {known.name for known in cases.CORE}
    if quick or not core:
        left_out |= {name for name, peer in PEERS.items() if peer.compiles}
    if spec.elements > HEAVY and not core:
        left_out |= {REFERENCE, "torch-sparse"}
    return [peer for name, peer in PEERS.items() if name not in left_out]


def execute(job: AnyJob) -> int:
    """Run and write; 1 where something was wrong or broke. What is done is saved after every case.

    What cannot be had here (a package, a graph) or needs more memory than there is breaks nothing.
    """
    with suppress(ValueError):  # only the main thread may handle signals
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the run as Ctrl-C does
    if isinstance(job, minibatch.Job):
        with progress(len(job.workloads)) as tell:
            return minibatch.execute(job, tell)
    if isinstance(job, sharded.Job):
        with progress(len(job.layers) * len(sharded.RHOS)) as tell:
            return sharded.execute(job, tell)
    os.environ["OMP_NUM_THREADS"] = str(job.settings.threads)
    torch.set_num_threads(job.settings.threads)
    path = job.out / "results.json"
    if isinstance(job, targets_run.Job):
        with progress(len(job.groups)) as tell:
            found = targets_run.execute(job, tell, partial(results.save, path=path))
    else:
        found = measure_layers(job, path)
    report.show(found)
    print(f"written to {', '.join(str(name) for name in write_readable(found, path))}")
    return int(any(failures(found)))


def failures(found: results.Report) -> Iterator[bool]:
    """Of every case, peer and target, whether it failed; a target's contestant may be too slow."""
    for case in found.cases:
        yield case.status == "error"
        yield from (peer.status in ("FAIL", "error") for peer in case.peers)
    yield from (one.status == "FAIL" for one in found.targets or [])


def measure_layers(job: Job, path: Path) -> results.Report:
    """The cases, the epoch and the curves of a run, saved to `path` after each."""
    settings = {**asdict(job.settings), "argv": sys.argv[1:]}
    found = results.Report(results.environment(job.device), settings)
    lines = curves.Curves(
        job.peers or peers_for(replace(cases.CORE[0], device=job.device), quick=True)
    )
    cores = os.cpu_count() or 1
    points = curves.points(job.settings, job.device, cores) if job.curves else []
    start = time.perf_counter()
    with progress(len(job.specs) + len(points) + job.epoch) as tell:
        for done, spec in enumerate(job.specs):
            peers = job.peers_for(spec)
            found.cases.append(run.run_case(spec, peers, job.settings, partial(tell, done)))
            results.save(found, path)
        if job.epoch:
            found.epoch = run.run_epoch(job.settings, partial(tell, len(job.specs)))
        for done, point in enumerate(points, len(job.specs) + job.epoch):
            lines.run(point, partial(tell, done))
            found.curves = list(lines)
            results.save(found, path)
    found.settings["wall_seconds"] = round(time.perf_counter() - start)
    results.save(found, path)
    return found


def write_readable(found: results.Report, path: Path) -> list[Path]:
    """Markdown and charts beside the result's file; all three are returned."""
    text = path.with_suffix(".md")
    disk.write(text, lambda part: part.write_text(report.markdown(found)))
    try:
        drawn = charts.draw(found, path.parent)
    except MissingExtraError as missing:
        print(f"no charts: {missing}", file=sys.stderr)
        drawn = []
    return [path, text, *drawn]


def show_comparison(before: Path, after: Path) -> int:
    """Print what changed between two results. Raises: ValueError, OSError for unusable files."""
    first, second = results.load(before), results.load(after)
    report.show_tables([compare.compare(first, second)])
    for line in compare.differences(first, second):
        print(line)
    return 0
