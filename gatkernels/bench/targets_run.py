"""Measure what the stated targets are about, most important first, each group in a process.

A group is what shares a graph: our operators of one backend, the layers that are compared, or one
of the small cases. A crash, a hang or too little memory costs its own group.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gatkernels import _dispatch
from gatkernels.bench import cases, check, drawn, measure, memory, operators, process, run, targets
from gatkernels.bench.cases import DTYPES, Spec
from gatkernels.bench.limits import Projection
from gatkernels.bench.peers import Ours, Step, find
from gatkernels.bench.process import ChildError, Tick
from gatkernels.bench.results import Measured, PeerResult, Report, environment
from gatkernels.bench.run import Settings

SECONDS = 0.3
#: A group that takes a GPU longer, compiling PyG's layer included, is given up.
TIMEOUT = 240.0
#: Options that choose cases, which the targets do themselves.
OWN_CASES = ("quick", "shapes", "layers", "dtypes", "peers", "curves", "compare")
#: Steps in one CUDA graph, so that starting it does not count.
REPLAYED = 16


@dataclass(frozen=True)
class Group:
    """Contestants on cases of one graph; what is found has all of them, whatever happens."""

    kind: str
    names: tuple[str, ...]
    specs: tuple[Spec, ...]

    @property
    def title(self) -> str:
        return f"{', '.join(self.names)}: {self.kind} {self.specs[0].graph}"


@dataclass(frozen=True)
class Job:
    groups: list[Group]
    settings: Settings
    device: str
    graphs: tuple[str, ...]
    out: Path


def prepare(args: argparse.Namespace) -> Job:
    """What the options ask for. Raises: ValueError naming the option."""
    for name in OWN_CASES:
        if getattr(args, name):
            raise ValueError(f"--targets has cases of its own; --{name} does not go with it")
    graphs = tuple(args.graphs or targets.GRAPHS)
    for graph in graphs:
        if graph not in targets.GRAPHS:
            known = ", ".join(targets.GRAPHS)
            raise ValueError(f"--graphs: no target is stated on '{graph}'; those with: {known}")
    limit = None if args.memory_limit is None else int(args.memory_limit * 2**30)
    threads = args.threads or torch.get_num_threads()
    device = torch.device(args.device).type
    timeout = process.TIMEOUT if device == "cpu" else TIMEOUT
    settings = Settings(threads, args.seconds or SECONDS, not args.no_memory, limit, timeout)
    found = plan(device, graphs)
    placed = [
        replace(group, specs=tuple(place(spec, args.device, args.scale) for spec in group.specs))
        for group in found
    ]
    return Job(placed, settings, args.device, graphs, args.out)


def place(spec: Spec, device: str, scale: float) -> Spec:
    """The case on a device; on a CPU, with scale 0, as much of the graph as suits one."""
    if not scale:
        heads, channels = cases.parse_shape(spec.shape, 8)
        edges = drawn.SIZES[spec.graph].edges
        scale = cases.auto_scale(edges, heads * channels) if device == "cpu" else 1.0
    return replace(spec, device=device, scale=1.0 if spec.graph == "cora" else scale)


def plan(device: str, graphs: Sequence[str]) -> list[Group]:
    """The groups in the order in which they matter."""
    backends = tuple(dict.fromkeys(targets.stand_in(name, device) for name in ("cuda", "triton")))
    found = [
        Group("operator", (backend,), specs_of("operator", graph))
        for backend in backends
        for graph in (*targets.LARGE, "arxiv")
        if graph in graphs
    ]
    for kind, graph in (("small", "cora"), ("hub", "hub")):
        used = [target.backend for target in targets.TARGETS if target.kind == kind]
        for backend in backends if graph in graphs else ():
            if device == "cpu" or backend in used:
                found.append(Group(kind, (backend,), specs_of(kind, graph)))
    # The libraries that were only ever adapted from their sources come last and by themselves: a
    # crash of one takes nobody else's figures along.
    for kind, peers, ours in (
        ("layer", ("pyg", "pyg-compiled"), backends),
        ("layer dgnn", ("dgnn",), backends[:1]),
        ("layer turbo-gnn", ("turbo-gnn",), backends[:1]),
    ):
        for graph in targets.PEER_GRAPHS:
            for spec in specs_of(kind, graph) if graph in graphs else ():
                found.append(Group(kind, (*ours, *peers), (spec,)))
    return found


def specs_of(kind: str, graph: str) -> tuple[Spec, ...]:
    """The cases on a graph that targets of a kind need, wide ones first: they share their graph."""
    chosen: dict[Spec, None] = {}
    for target in targets.TARGETS:
        for spec in target.specs if target.kind == kind else ():
            if spec.graph == graph:
                chosen[spec] = None
                chosen[replace(spec, dtype=target.base_dtype or spec.dtype)] = None
    return tuple(sorted(chosen, key=lambda spec: (spec.shape != "4x64", spec.layer)))


def execute(job: Job, tell: Callable[[int, str], None], save: Callable[[Report], None]) -> Report:
    """Measure group after group; what is done is saved after each."""
    settings = {**asdict(job.settings), "device": torch.device(job.device).type}
    settings |= {"graphs": list(job.graphs), "argv": sys.argv[1:]}
    found: list[Measured] = []
    report = Report(environment(job.device), settings, targets=found)
    start = time.perf_counter()
    for done, group in enumerate(job.groups):
        found += run_group(group, job.settings, partial(tell, done))
        settings["wall_seconds"] = round(time.perf_counter() - start)
        save(report)
    return report


def run_group(group: Group, settings: Settings, tick: Tick) -> list[Measured]:
    """The group's results; whoever cannot run, or was lost with its process, says why."""
    device = group.specs[0].device

    def fresh(work: Callable[..., Any], *arguments: Any) -> Any:
        return process.call(
            work,
            *arguments,
            threads=settings.threads,
            memory_limit=settings.memory_limit,
            device=device,
            timeout=settings.timeout,
            tick=lambda text: tick(f"{group.title}: {text}"),
        )

    def lost(error: ChildError) -> list[Measured]:
        return [
            Measured(
                group.kind, name, spec.graph, spec.shape, spec.layer, spec.dtype,
                error.status, error.reason,
            )
            for name in group.names
            for spec in group.specs
        ]  # fmt: skip

    try:
        if group.kind.startswith("layer"):
            return _layers(group, settings, fresh)
        (backend,) = group.names
        call = _dispatch.Case(torch.device(device), DTYPES[group.specs[0].dtype])
        if reason := _dispatch.supports(backend, call):
            return lost(ChildError("skipped", reason))
        work = {"operator": operators.time_floors, "hub": operators.time_hub, "small": time_small}
        found: list[Measured] = fresh(work[group.kind], backend, group.specs, settings.seconds)
        return found
    except ChildError as error:
        return lost(error)


def _layers(group: Group, settings: Settings, fresh: Callable[..., Any]) -> list[Measured]:
    """On a CPU memory is weighed in processes of its own; who runs out of it is not timed."""
    (spec,) = group.specs
    outcomes = [PeerResult(address(name)) for name in group.names]
    if spec.device == "cpu" and settings.memory and group.kind == "layer":
        for outcome in outcomes:
            try:
                outcome.peak = fresh(memory.peak_memory, _drawn(spec), outcome.name)
            except ChildError as error:
                outcome.status, outcome.reason = error.status, error.reason
    arguments = (group, outcomes, settings.memory, settings.seconds)
    found: list[Measured] = fresh(compare_layers, *arguments)
    return found


def compare_layers(
    group: Group, outcomes: list[PeerResult], weigh: bool, seconds: float, tick: Tick
) -> list[Measured]:
    """Layers checked, weighed on a GPU, and timed in turns: a step each, and its peak memory."""
    (spec,) = group.specs
    device = torch.device(spec.device)
    for outcome in outcomes:
        reason = find(outcome.name).unavailable(_drawn(spec)) if outcome.status == "ok" else None
        if reason:
            outcome.status, outcome.reason = "skipped", reason
    steps, size = {}, []
    # Ours alone have nobody to be compared with, and drawing a large graph takes time.
    if any(outcome.status == "ok" for outcome in outcomes if not _ours(outcome.name)):
        tick("graph drawn")
        case = cases.build(_drawn(spec))
        size = [case.edges.num_dst, case.num_edges]
        expected = check.expect(case)
        for outcome in outcomes:
            if outcome.status == "ok":
                tick(f"{outcome.name} checked")
                step = run.prepare(find(outcome.name), case, expected, outcome)
                if step is not None and _weighed(step, outcome, device, weigh):
                    steps[outcome.name] = step
        times = measure.interleave(steps, device, seconds, lambda name: tick(f"{name} timed"))
        for outcome in outcomes:
            outcome.timings = times.get(outcome.name, {})
    else:
        others = [outcome for outcome in outcomes if not _ours(outcome.name)]
        reasons = "; ".join(f"{other.name} {other.status}, {other.reason}" for other in others)
        for outcome in outcomes:
            if outcome.status == "ok":
                outcome.status, outcome.reason = "skipped", f"nobody beside it ({reasons})"
    return [
        _measured(group, spec, name, outcome, size)
        for name, outcome in zip(group.names, outcomes, strict=True)
    ]


def _weighed(step: Step, outcome: PeerResult, device: torch.device, weigh: bool) -> bool:
    """Note the peak of a step on a GPU; False where the memory there does not do."""
    if device.type == "cpu" or not weigh:
        return True
    try:
        outcome.peak = memory.on_gpu(step)
    except torch.OutOfMemoryError as error:
        outcome.status, outcome.reason = "OOM", process.failure(error).reason
        return False
    return True


def _measured(
    group: Group, spec: Spec, name: str, outcome: PeerResult, size: list[int]
) -> Measured:
    found = Measured(group.kind, name, spec.graph, spec.shape, spec.layer, spec.dtype)
    found.status, found.reason, found.size = outcome.status, outcome.reason, size
    found.figures = {phase: timing.median for phase, timing in outcome.timings.items()}
    if outcome.peak is not None and outcome.peak.bytes is not None:
        found.figures["peak"] = float(outcome.peak.bytes)
    else:
        reason = outcome.peak.reason if outcome.peak else "memory was not weighed"
        found.missing["peak"] = reason
    return found


def time_small(backend: str, specs: Sequence[Spec], seconds: float, tick: Tick) -> list[Measured]:
    """A layer of Cora's size on the same inputs again and again, as training has it.

    On a GPU its step by the device's clock, inside a CUDA graph (the projection alone as well), and
    the host's time to issue it.
    """
    (spec,) = specs
    device = torch.device(spec.device)
    found = Measured("small", backend, spec.graph, spec.shape, spec.layer, spec.dtype)
    tick("checked")
    case = cases.build(_drawn(spec))
    found.size = [case.edges.num_dst, case.num_edges]
    outcome = PeerResult(address(backend))
    step = run.prepare(find(outcome.name), case, check.expect(case), outcome)
    if step is None:
        found.status, found.reason = outcome.status, outcome.reason
        return [found]
    step.hold = True
    tick("timed")
    found.figures["step"] = measure.interleave({"": step}, device, seconds)[""]["step"].median
    if device.type == "cpu":
        found.missing = dict.fromkeys(("host", "replay"), "a GPU's figure; this ran on a CPU")
        return [found]
    found.figures["host"] = measure.issued(step).median
    projection = Projection(case)
    projection.rotation.hold = True
    try:
        found.figures["replay"] = measure.replayed(step, REPLAYED).median
        found.figures["projection replay"] = measure.replayed(projection, REPLAYED).median
    except RuntimeError as error:
        found.missing["replay"] = f"no graph replay: {process.failure(error).reason}"
    return [found]


def _drawn(spec: Spec) -> Spec:
    return replace(spec, graph=f"drawn:{spec.graph}")


def _ours(name: str) -> bool:
    return isinstance(find(name), Ours)


def address(name: str) -> str:
    """The peer of a backend of ours, or `name`."""
    return f"gatkernels-{name}" if name in _dispatch.BACKENDS else name
