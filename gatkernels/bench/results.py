"""What a run finds out, and its file."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gatkernels import disk
from gatkernels.bench.measure import Timing
from gatkernels.bench.memory import Peak
from gatkernels.bench.peers import REFERENCE, our_fastest

FORMAT = 2


@dataclass
class PeerResult:
    """What one peer did on one case; `status` is ok, FAIL, OOM, error or skipped."""

    name: str
    status: str = "ok"
    reason: str = ""
    error: float | None = None  # largest difference from the float64 reference
    graph_seconds: float | None = None
    first_call_seconds: float | None = None  # graph and first step
    timings: dict[str, Timing] = field(default_factory=dict)  # by phase; cold caches
    warm: Timing | None = None  # step on the same inputs again and again
    replay: Timing | None = None  # step inside a CUDA graph
    peak: Peak | None = None


@dataclass
class LimitResult:
    name: str
    note: str
    timings: dict[str, Timing]


@dataclass
class CaseResult:
    """A case with everybody's results; times in seconds, traffic in bytes by phase."""

    name: str
    spec: dict[str, Any]
    status: str = "ok"
    reason: str = ""
    note: str = ""
    shape: str = ""
    scale: float = 1.0
    num_nodes: list[int] = field(default_factory=list)  # sources, destinations
    num_edges: int = 0
    max_in_degree: int = 0
    compulsory: dict[str, int] = field(default_factory=dict)
    gathered: dict[str, int] = field(default_factory=dict)
    copy_bandwidth: float | None = None
    foreign_cores: float | None = None  # cores that other processes kept busy while timing
    seconds: float = 0.0  # spent on the case
    peers: list[PeerResult] = field(default_factory=list)
    limits: list[LimitResult] = field(default_factory=list)

    def peer(self, name: str) -> PeerResult | None:
        return next((peer for peer in self.peers if peer.name == name), None)

    @property
    def ours(self) -> PeerResult | None:
        """Our backend that "auto" takes, of those that were timed."""
        timed = [peer.name for peer in self.peers if peer.timings]
        best = our_fastest([name for name in timed if name != REFERENCE])
        return self.peer(best) if best else None

    def ratio(self, name: str, phase: str = "step", base: str | None = None) -> float | None:
        """How many times longer `name` takes than `base` (ours)."""
        ours, other = self.peer(base) if base else self.ours, self.peer(name)
        if ours is None or other is None:
            return None
        mine, theirs = ours.timings.get(phase), other.timings.get(phase)
        return theirs.median / mine.median if mine and theirs else None

    def floor(self, phase: str) -> float | None:
        """Seconds of the projection and the gather-sum alone."""
        found = [limit.timings[phase].median for limit in self.limits if phase in limit.timings]
        return sum(found) if found else None


@dataclass
class Curve:
    """One peer's line in a figure: `y` is None where `note` says why."""

    figure: str
    peer: str
    x: list[float] = field(default_factory=list)
    y: list[float | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Measured:
    """What one contestant did in one case of the stated targets: seconds, and bytes of memory.

    `kind` is operator (attention alone), hub, small (a layer of Cora's size), or layer, with the
    peer's name behind it where that peer is timed apart from the others.
    """

    kind: str
    name: str  # a backend of ours, or a peer
    graph: str
    shape: str
    layer: str
    dtype: str
    status: str = "ok"
    reason: str = ""
    size: list[int] = field(default_factory=list)  # nodes, edges
    figures: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # why a figure is not there


@dataclass
class Report:
    """Everything one run found out."""

    environment: dict[str, Any]
    settings: dict[str, Any]
    cases: list[CaseResult] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    epoch: dict[str, Any] | None = None
    format: int = FORMAT
    targets: list[Measured] | None = None  # where `--targets` asked for them

    def case(self, name: str) -> CaseResult | None:
        return next((case for case in self.cases if case.name == name), None)


def save(report: Report, path: Path) -> None:
    write_json(path, dataclasses.asdict(report))


def write_json(path: Path, content: Any) -> None:
    disk.write(path, lambda part: part.write_text(json.dumps(content, indent=1) + "\n"))


def load(path: Path) -> Report:
    """Read a file of `save`. Raises: ValueError for anything else, OSError."""
    try:
        data = json.loads(path.read_text())
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}, expected {FORMAT}")
        data["cases"] = [_case(case) for case in data["cases"]]
        data["curves"] = [Curve(**curve) for curve in data["curves"]]
        if data.get("targets") is not None:
            data["targets"] = [Measured(**measured) for measured in data["targets"]]
        return Report(**data)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a result of this benchmark ({error})") from error


def _case(data: dict[str, Any]) -> CaseResult:
    peers = [_peer(peer) for peer in data.pop("peers")]
    limits = [
        LimitResult(limit["name"], limit["note"], _timings(limit["timings"]))
        for limit in data.pop("limits")
    ]
    return CaseResult(**data, peers=peers, limits=limits)


def _peer(data: dict[str, Any]) -> PeerResult:
    for name, kind in (("warm", Timing), ("replay", Timing), ("peak", Peak)):
        data[name] = None if data[name] is None else kind(**data[name])
    return PeerResult(**{**data, "timings": _timings(data["timings"])})


def _timings(data: dict[str, Any]) -> dict[str, Timing]:
    return {phase: Timing(**timing) for phase, timing in data.items()}


PACKAGES = ("gatkernels", "torch", "numpy", "torch-geometric", "dgl", "triton")


def environment(device: str = "cpu") -> dict[str, Any]:
    """Device, versions, commit, date, threads and load."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    if versions["gatkernels"] == "absent":
        from gatkernels import __version__

        versions["gatkernels"] = __version__
    commit, dirty = _commit()
    return {
        "device": torch.cuda.get_device_name(device) if device != "cpu" else _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "load": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else [],
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "versions": versions,
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "commit": commit,
        "dirty": dirty,
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


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _commit() -> tuple[str | None, bool | None]:
    """The commit of this source tree and whether it has changes; None outside a repository."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None, None
    commit = _git("rev-parse", "--short=12", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else bool(changes)
