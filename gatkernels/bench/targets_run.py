"""Measure what the stated targets are about, most important first, each group in a process.

A group is what shares a graph: our operators of one backend and shape, the layers that are
compared, or one of the small cases. A crash, a hang or too little memory costs its own group, or
what of it had not been measured yet. Results are saved one by one.
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

from gatkernels import backends
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
#: PyG's layer under Inductor, which may tune for minutes what it compiles.
COMPILED_TIMEOUT = 90.0
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
    chosen: dict[str, list[str]]  # graphs, kinds and backends
    out: Path
    deadline: float | None = None


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
    kinds = args.kinds or targets.KINDS
    for kind in kinds:
        if kind not in targets.KINDS:
            raise ValueError(f"--kinds: no kind '{kind}'; known: {', '.join(targets.KINDS)}")
    backends = our_backends(device)
    for backend in args.backends or ():
        if backend not in backends:
            known = ", ".join(backends)
            raise ValueError(f"--backends: no target of '{backend}' there; those with: {known}")
    backends = tuple(args.backends or backends)
    if args.deadline is not None and args.deadline <= 0:
        raise ValueError(f"--deadline must be positive, got {args.deadline:g}")
    found = [group for group in plan(device, graphs, backends) if group.kind in kinds]
    placed = [
        replace(group, specs=tuple(place(spec, args.device, args.scale) for spec in group.specs))
        for group in found
    ]
    chosen = {"graphs": list(graphs), "kinds": list(kinds), "backends": list(backends)}
    return Job(placed, settings, args.device, chosen, args.out, args.deadline)


def our_backends(device: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(targets.stand_in(name, device) for name in ("cuda", "triton")))


def place(spec: Spec, device: str, scale: float) -> Spec:
    """The case on a device; on a CPU, with scale 0, as much of the graph as suits one."""
    if not scale:
        heads, channels = cases.parse_shape(spec.shape, 8)
        edges = drawn.SIZES[spec.graph].edges
        scale = cases.auto_scale(edges, heads * channels) if device == "cpu" else 1.0
    return replace(spec, device=device, scale=1.0 if spec.graph == "cora" else scale)


def plan(device: str, graphs: Sequence[str], backends: Sequence[str] | None = None) -> list[Group]:
    """The groups in the order in which they matter: all of the first backend's, layers beside PyG
    on the smallest graph, then the other backend's and the other layers."""
    backends = backends or our_backends(device)
    found = [group for group in _ours_alone(device, backends[0]) if group.specs]
    layers = [
        Group(kind, (*ours, *peers), (spec,))
        for graph in targets.PEER_GRAPHS
        for kind, peers, ours in (
            ("layer", ("pyg",), backends),
            # by itself: it may take its process along, and what the others found with it
            ("layer compiled", ("pyg-compiled",), backends),
        )
        for spec in specs_of(kind, graph)
    ]
    found += [group for group in layers if group.specs[0].graph == "arxiv"]
    for backend in backends[1:]:
        found += _ours_alone(device, backend)
    found += [group for group in layers if group.specs[0].graph != "arxiv"]
    # The libraries that were only ever adapted from their sources come last and by themselves: a
    # crash of one takes nobody else's figures along.
    for peer in ("dgnn", "turbo-gnn"):
        kind = f"layer {peer}"
        for graph in targets.PEER_GRAPHS:
            found += [Group(kind, (backends[0], peer), (spec,)) for spec in specs_of(kind, graph)]
    return [group for group in found if group.specs[0].graph in graphs]


def _ours_alone(device: str, backend: str) -> list[Group]:
    """A backend's operators, wide rows first, and its small cases."""
    used = {target.kind for target in targets.TARGETS if target.backend == backend}
    found = []
    for shape in ("4x64", "8x8"):
        for graph in ("reddit", "products", "arxiv", "proteins"):
            specs = tuple(spec for spec in specs_of("operator", graph) if spec.shape == shape)
            found.append(Group("operator", (backend,), specs))
    for kind, graph in (("hub", "hub"), ("small", "cora")):
        if device == "cpu" or kind in used:
            found.append(Group(kind, (backend,), specs_of(kind, graph)))
    return [group for group in found if group.specs]


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
    """Measure group after group until the deadline; each result is saved as it comes."""
    settings = {**asdict(job.settings), "device": torch.device(job.device).type, **job.chosen}
    settings |= {"argv": sys.argv[1:], "deadline": job.deadline}
    found: list[Measured] = []
    report = Report(environment(job.device), settings, targets=found)
    start = time.perf_counter()

    def keep(one: Measured) -> None:
        found.append(one)
        settings["wall_seconds"] = round(time.perf_counter() - start)
        save(report)

    for done, group in enumerate(job.groups):
        left = None if job.deadline is None else job.deadline - (time.perf_counter() - start)
        if left is not None and left <= 0:
            error = ChildError("open", f"not reached in {job.deadline:g} s")
            for one in lost(group, error):
                keep(one)
            continue
        settings_of_group = limited(job.settings, group, left)
        cut = settings_of_group.timeout == left
        run_group(group, settings_of_group, partial(tell, done), keep, cut)
    save(report)
    return report


def limited(settings: Settings, group: Group, left: float | None) -> Settings:
    """With the seconds that a group may take."""
    timeout = settings.timeout
    if group.kind == "layer compiled" and group.specs[0].device != "cpu":
        timeout = min(timeout, COMPILED_TIMEOUT)
    return replace(settings, timeout=timeout if left is None else min(timeout, left))


def lost(group: Group, error: ChildError) -> list[Measured]:
    return [
        Measured(
            group.kind, name, spec.graph, spec.shape, spec.layer, spec.dtype,
            error.status, error.reason,
        )
        for name in group.names
        for spec in group.specs
    ]  # fmt: skip


def run_group(
    group: Group,
    settings: Settings,
    tick: Tick,
    keep: Callable[[Measured], None],
    cut: bool = False,
) -> None:
    """The group's results, each as it comes; whoever cannot run, or was lost with its process,
    says why. ``cut``: its time is what the deadline has left."""
    device = group.specs[0].device
    done: set[tuple[str, ...]] = set()

    def hear(told: str | Measured) -> None:
        if isinstance(told, str):
            tick(f"{group.title}: {told}")
            return
        keep(told)
        done.add((told.name, told.shape, told.layer, told.dtype))

    def fresh(work: Callable[..., Any], *arguments: Any) -> Any:
        return process.call(
            work,
            *arguments,
            threads=settings.threads,
            memory_limit=settings.memory_limit,
            device=device,
            timeout=settings.timeout,
            tick=hear,
        )

    def give_up(error: ChildError) -> None:
        for one in lost(group, error):
            if (one.name, one.shape, one.layer, one.dtype) not in done:
                keep(one)

    try:
        if group.kind.startswith("layer"):
            for one in _layers(group, settings, fresh):
                keep(one)
            return
        (backend,) = group.names
        call = backends.Case(torch.device(device), DTYPES[group.specs[0].dtype])
        if reason := backends.supports(backend, call):
            give_up(ChildError("skipped", reason))
            return
        work = {"operator": operators.time_floors, "hub": operators.time_hub, "small": time_small}
        fresh(work[group.kind], backend, group.specs, settings.seconds)
    except process.LateError as error:
        give_up(ChildError("open", f"{error.reason}, the deadline's last") if cut else error)
    except ChildError as error:
        give_up(error)


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


def time_small(backend: str, specs: Sequence[Spec], seconds: float, tick: Tick) -> None:
    """A layer of Cora's size on the same inputs again and again, as training has it; told to tick.

    On a GPU its step by the device's clock, inside a CUDA graph (the projection alone as well), the
    host's time to issue it, and the step as it is when called, the GPU waiting for the host.
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
        tick(found)
        return
    step.hold = True
    tick("timed")
    times = measure.interleave({"": step}, device, seconds, ahead=True)
    found.figures["step"] = times[""]["step"].median
    if device.type == "cpu":
        found.missing = dict.fromkeys(("host", "replay"), "a GPU's figure; this ran on a CPU")
        tick(found)
        return
    called = measure.interleave({"": step}, device, seconds / 3)
    found.figures["called step"] = called[""]["step"].median
    found.figures["host"] = measure.issued(step).median
    projection = Projection(case)
    projection.rotation.hold = True
    try:
        found.figures["replay"] = measure.replayed(step, REPLAYED).median
        found.figures["projection replay"] = measure.replayed(projection, REPLAYED).median
    except RuntimeError as error:
        found.missing["replay"] = f"no graph replay: {process.failure(error).reason}"
    tick(found)


def _drawn(spec: Spec) -> Spec:
    return replace(spec, graph=f"drawn:{spec.graph}")


def _ours(name: str) -> bool:
    return isinstance(find(name), Ours)


def address(name: str) -> str:
    """The peer of a backend of ours, or `name`."""
    return f"gatkernels-{name}" if name in backends.BACKENDS else name
