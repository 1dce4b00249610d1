"""Results as a table, as Markdown and as JSON, and the targets they are held to."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gatkernels.bench.epoch import EpochResult
from gatkernels.bench.measure import PHASES, Timing
from gatkernels.bench.peers import OURS
from gatkernels.bench.run import BuildResult, CaseResult, PeerResult

LAYER_COLUMNS = (
    "graph",
    "layer",
    "forward ms",
    "backward ms",
    "step ms",
    "quartiles",
    "x fwd",
    "x bwd",
    "x step",
    "peak MiB",
    "x mem",
    "graph ms",
)


@dataclass
class Report:
    """Everything one run found out."""

    environment: dict[str, Any]
    settings: dict[str, Any]
    cases: list[CaseResult] = field(default_factory=list)
    epoch: EpochResult | None = None
    builds: list[BuildResult] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Target:
    """A figure and its bound: at least `bound`, or at most where `at_most`."""

    text: str
    value: float | None
    bound: float
    at_most: bool = False

    @property
    def state(self) -> str:
        if self.value is None:
            return "not measured"
        met = self.value <= self.bound if self.at_most else self.value >= self.bound
        return f"{'met' if met else 'MISSED'} ({self.value:.3g})"


def environment() -> dict[str, Any]:
    """Machine, versions and commit."""
    versions = {"python": platform.python_version()}
    for package in ("gatkernels", "torch", "numpy", "torch-geometric", "dgl"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "versions": versions,
        "commit": _commit(),
    }


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _commit() -> str | None:
    """Commit of the checkout this package lies in, marked where it has changes."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def ms(timing: Timing | None) -> str:
    if timing is None:
        return "-"
    value = timing.median * 1e3
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _quartiles(timing: Timing | None) -> str:
    if timing is None:
        return "-"
    digits = 2 if timing.median < 0.1 else 0
    return f"{timing.q1 * 1e3:.{digits}f}-{timing.q3 * 1e3:.{digits}f}"


def _ratio(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _times(timings: dict[str, Timing]) -> list[str]:
    return [*(ms(timings.get(phase)) for phase in PHASES), _quartiles(timings.get("step"))]


def layer_table(cases: Sequence[CaseResult]) -> Table:
    rows = []
    for case in cases:
        if case.status != "ok":
            rows.append([case.name, case.status, case.reason] + [""] * (len(LAYER_COLUMNS) - 3))
            continue
        for peer in case.peers:
            rows.append([case.name, *_peer_cells(case, peer)])
        for limit in case.limits:
            shares = [_share(case, limit.timings, phase) for phase in PHASES]
            name = f"({limit.name})"
            rows.append([case.name, name, *_times(limit.timings), *shares, "", "", ""])
    title = "GAT layer, float32; x: times ours takes (limits: share of ours)"
    return Table(title, LAYER_COLUMNS, rows)


def _peer_cells(case: CaseResult, peer: PeerResult) -> list[str]:
    if peer.status != "ok":
        return [peer.name, peer.status, peer.reason] + [""] * (len(LAYER_COLUMNS) - 4)
    peak = "-"
    if peer.peak is not None:
        peak = peer.peak.reason if peer.peak.bytes is None else f"{peer.peak.bytes / 2**20:.1f}"
    return [
        peer.name,
        *_times(peer.timings),
        *(_ratio(case.ratio(peer.name, phase)) for phase in PHASES),
        peak,
        _ratio(case.memory_ratio(peer.name)),
        "-" if peer.graph_seconds is None else f"{peer.graph_seconds * 1e3:.1f}",
    ]


def _share(case: CaseResult, timings: dict[str, Timing], phase: str) -> str:
    ours = case.peer(OURS)
    if ours is None or not ours.timings:
        return "-"
    return f"{timings[phase].median / ours.timings[phase].median:.0%}"


def epoch_table(result: EpochResult) -> Table:
    rows = [
        [name, ms(timing), _quartiles(timing), _ratio(timing.median / _base(result))]
        for name, timing in result.timings.items()
    ]
    if result.reason:
        rows.append(["pyg", result.reason, "", ""])
    return Table(
        "Two-layer GAT, training step + validation", ("model", "epoch ms", "quartiles", "x"), rows
    )


def _base(result: EpochResult) -> float:
    return result.timings[OURS].median


def build_table(builds: Sequence[BuildResult]) -> Table:
    rows = [
        [
            build.name,
            f"{build.num_edges:,}",
            build.order,
            ms(build.timing),
            _quartiles(build.timing),
        ]
        for build in builds
    ]
    title = "Graph.from_edge_index"
    return Table(title, ("graph", "edges", "edges sorted", "ms", "quartiles"), rows)


def tables(report: Report) -> list[Table]:
    found = []
    if report.cases:
        found.append(layer_table(report.cases))
    if report.epoch:
        found.append(epoch_table(report.epoch))
    if report.builds:
        found.append(build_table(report.builds))
    return found


#: More cores than this in other hands while timing is remarked on.
BUSY = 0.15
#: Case, peer and how many times our step's time (or peak memory) it must take at least.
STEP_TARGETS = (
    ("cora", "dgl", 1.0),
    ("cora", "pyg", 1.0),
    ("arxiv", "dgl", 4.0),
    ("arxiv", "pyg", 8.0),
    ("products", "dgl", 10.0),
    ("products", "pyg", 25.0),
)
MEMORY_TARGETS = (("products", "pyg", 10.0),)
EPOCH_TARGET = 4.0
BUILD_TARGETS = {"arxiv": 0.050, "products": 0.400}


def targets(report: Report) -> list[Target]:
    by_name = {case.name: case for case in report.cases}
    found = []
    for name, peer, bound in STEP_TARGETS:
        if name in by_name:
            value = by_name[name].ratio(peer, "step")
            found.append(Target(f"{name}: step >= {bound:g}x faster than {peer}", value, bound))
    for name, peer, bound in MEMORY_TARGETS:
        if name in by_name:
            value = by_name[name].memory_ratio(peer)
            found.append(Target(f"{name}: {peer} takes >= {bound:g}x our memory", value, bound))
    if report.epoch:
        text = f"cora: epoch >= {EPOCH_TARGET:g}x faster than pyg"
        found.append(Target(text, report.epoch.ratio, EPOCH_TARGET))
    for build in report.builds:
        if build.name in BUILD_TARGETS:
            bound = BUILD_TARGETS[build.name] * 1e3
            text = (
                f"{build.name}: graph of {build.num_edges:,} edges ({build.order}) <= {bound:g} ms"
            )
            found.append(Target(text, build.timing.median * 1e3, bound, at_most=True))
    return found


def notes(report: Report) -> list[str]:
    """Where each graph came from, the floors' routines and how far each layer was off."""
    lines = []
    for case in report.cases:
        if case.status != "ok":
            continue
        floors = ", ".join(f"{limit.name} by {limit.note}" for limit in case.limits)
        errors = ", ".join(
            f"{peer.name} {peer.error:.0e}" for peer in case.peers if peer.error is not None
        )
        lines.append(
            f"{case.name}: {case.note}; {case.num_nodes:,} nodes, {case.num_edges:,} edges, "
            f"at most {case.max_in_degree:,} into one; {case.shape}; {floors}; "
            f"error against float64: {errors}"
        )
        if case.foreign_cores is not None and case.foreign_cores > BUSY:
            lines.append(
                f"{case.name}: other processes kept {case.foreign_cores} cores busy; "
                "these times are high"
            )
    if report.epoch and report.epoch.logit_difference is not None:
        lines.append(
            f"epoch: {report.epoch.note}; "
            f"logits of the two models differ by {report.epoch.logit_difference:.0e}"
        )
    return lines


def markdown(report: Report) -> str:
    env = report.environment
    versions = ", ".join(f"{name} {version}" for name, version in env["versions"].items())
    parts = [
        f"{env['cpu']}, {env['threads']} of {env['cores']} cores, {env['memory_gib']} GiB, "
        f"{env['system']}; {versions}; commit {env['commit'] or 'unknown'}.",
    ]
    for table in tables(report):
        lines = [
            f"| {' | '.join(table.columns)} |",
            f"|{'|'.join('---' if i < 2 else '---:' for i in range(len(table.columns)))}|",
            *(f"| {' | '.join(row)} |" for row in table.rows),
        ]
        parts += [f"**{table.title}**", "\n".join(lines)]
    parts.append("\n".join(f"- {line}" for line in notes(report)))
    parts.append("\n".join(f"- {target.text}: {target.state}" for target in targets(report)))
    return "\n\n".join(part for part in parts if part) + "\n"


def write(report: Report, path: Path) -> None:
    """`path` as JSON and, beside it, the tables as Markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(report), indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(report))


def show(report: Report) -> None:
    """Print the tables (with rich where it is installed), the notes and the targets."""
    try:
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        print(markdown(report))
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables(report):
        rich = RichTable(title=table.title, title_justify="left")
        for place, column in enumerate(table.columns):
            rich.add_column(column, justify="left" if place < 2 else "right")
        before = None
        for row in table.rows:
            if before is not None and row[0] != before:
                rich.add_section()
            rich.add_row(*row)
            before = row[0] if table.columns is LAYER_COLUMNS else before
        console.print(rich)
    for line in notes(report):
        console.print(line, style="dim", highlight=False)
    for target in targets(report):
        style = {"m": "green", "M": "bold red", "n": "yellow"}[target.state[0]]
        console.print(f"{target.text}: {target.state}", style=style, highlight=False)
