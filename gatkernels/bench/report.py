"""Results as tables: on the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gatkernels.bench import targets
from gatkernels.bench.measure import PHASES, Timing
from gatkernels.bench.memory import Peak
from gatkernels.bench.peers import REFERENCE
from gatkernels.bench.results import CaseResult, PeerResult, Report
from gatkernels.bench.targets import Row, Target

#: Of a terminal's 120 columns a case and a peer leave room for eight figures.
WIDTH = 120
COLUMNS = (
    "case",
    "peer",
    "forward",
    "backward",
    "step",
    "± %",
    "warm",
    "ours is",
    "naive is",
    "peak MiB",
)
TRAFFIC_COLUMNS = ("case", "peer", "GB/s", "gathered", "of floor", "graph", "first")
LEGEND = (
    "step = forward + backward, on cold caches; ±: interquartile range; warm: the same inputs "
    "again and again; ours is: step over our fastest backend's; naive is: the reference's step "
    "over this one; GB/s: compulsory bytes, gathered: a row per edge; of floor: projection + "
    "gather-sum over the step; first: graph and first step."
)
#: More cores than this in other hands while timing is remarked on.
BUSY = 0.15


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: list[list[str]]


def ms(timing: Timing | None) -> str:
    if timing is None:
        return "-"
    return milliseconds(timing.median)


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    value = seconds * 1e3
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def times(ratio: float | None) -> str:
    """A ratio as a reader wants it: 0.83x, 9.1x, 27x."""
    if ratio is None:
        return "-"
    digits = 2 if ratio < 2 else 1 if ratio < 20 else 0
    return f"{ratio:.{digits}f}x"


def mebibytes(peak: Peak | None) -> str:
    if peak is None or peak.bytes is None:
        return "-"
    return f"{peak.bytes / 2**20:,.1f}"


def case_table(found: Sequence[CaseResult]) -> Table:
    rows = []
    for case in found:
        label = case_label(case)
        if not case.num_edges:
            rows.append(_row(label, "", case.status))
            continue
        rows += [_peer_row(label, case, peer) for peer in case.peers]
        for limit in case.limits:
            cells = [ms(limit.timings.get(phase)) for phase in PHASES]
            step = limit.timings.get("step")
            spread = f"{step.spread * 100:.0f}" if step else "-"
            rows.append(_row(label, f"({limit.name})", *cells, spread))
    return Table("One layer, times in ms", COLUMNS, rows)


def case_label(case: CaseResult) -> str:
    scaled = "" if case.scale == 1 else f" /{1 / case.scale:g}"
    return case.name.replace(" ", f"{scaled} ", 1)


def _row(*cells: str) -> list[str]:
    return [*cells, *[""] * (len(COLUMNS) - len(cells))]


def _peer_row(label: str, case: CaseResult, peer: PeerResult) -> list[str]:
    if not peer.timings:
        return _row(label, peer.name, peer.status)
    step = peer.timings.get("step")
    return [
        label,
        peer.name,
        *(ms(peer.timings.get(phase)) for phase in PHASES),
        "-" if step is None else f"{step.spread * 100:.0f}",
        ms(peer.warm),
        times(case.ratio(peer.name)),
        times(case.ratio(REFERENCE, base=peer.name)),
        mebibytes(peer.peak),
    ]


def traffic_table(found: Sequence[CaseResult]) -> Table:
    """How a step's bytes compare with what the machine moves, and what came before the steps."""
    rows = []
    for case in found:
        for peer in case.peers:
            step, floor = peer.timings.get("step"), case.floor("step")
            if step is None:
                continue
            rows.append(
                [
                    case_label(case),
                    peer.name,
                    f"{case.compulsory['step'] / step.median / 1e9:.1f}",
                    f"{case.gathered['step'] / step.median / 1e9:.1f}",
                    "-" if floor is None else f"{floor / step.median:.0%}",
                    milliseconds(peer.graph_seconds),
                    milliseconds(peer.first_call_seconds),
                ]
            )
    return Table("Bandwidth of a step; graph and first step in ms", TRAFFIC_COLUMNS, rows)


def tables(report: Report) -> list[Table]:
    found = []
    if report.cases:
        found += [case_table(report.cases), traffic_table(report.cases)]
    if report.epoch:
        found.append(epoch_table(report.epoch))
    if report.targets is not None:
        found += target_tables(report)
    return found


def target_tables(report: Report) -> list[Table]:
    """Every line of the targets, and the worst line of each."""
    found = targets.rows(report)
    lines = [
        [
            row.target.name,
            f"{row.case} ({row.backend})",
            row.status if row.value is None else figure(row.target, row.value),
            bound(row.target),
            met(report, [row]),
            _detail(row),
        ]
        for row in found
    ]
    columns = ("target", "case (backend)", "measured", "bound", "met", "from")
    worst = [
        [target.name, target.what, summary(own), bound(target), met(report, own)]
        for target, own in targets.by_target(found)
    ]
    return [
        Table(f"Targets, stated for one {targets.DEVICE}", columns, lines),
        Table("Worst case of each", ("target", "what", "measured", "bound", "met"), worst),
    ]


def figure(target: Target, value: float) -> str:
    return f"{value * 1e6:,.1f} us" if target.unit == "us" else times(value)


def bound(target: Target) -> str:
    value = f"{target.bound * 1e6:g} us" if target.unit == "us" else f"{target.bound:g}x"
    return f"{'≥' if target.at_least else '≤'} {value}"


def summary(own: Sequence[Row]) -> str:
    """The worst value with its case, and how many lines have none."""
    worst = targets.worst(own)
    wrong = sum(row.status == "FAIL" for row in own)
    left = sum(row.value is None for row in own) - wrong
    parts = [] if worst is None else [f"{figure(worst.target, worst.value or 0.0)} ({worst.case})"]
    parts += [f"{wrong} of {len(own)} FAIL"] * (wrong > 0)
    parts += ["open" if left == len(own) else f"{left} of {len(own)} open"] * (left > 0)
    return "; ".join(parts)


def met(report: Report, own: Sequence[Row]) -> str:
    """Nothing on another device than the targets'; "yes" takes that no line is open."""
    values = [row.excess for row in own if row.excess is not None]
    if not targets.applies(report):
        return ""
    if any(row.status == "FAIL" for row in own) or any(value > 1.0 for value in values):
        return "no"
    return "yes" if values and len(values) == len(own) else ""


def _detail(row: Row) -> str:
    """The two figures behind a ratio, or why there is none."""
    if row.value is None or row.ours is None:
        return row.reason
    if row.target.unit == "us":
        return row.reason
    if row.figure == "peak":
        return f"{row.ours / 2**20:,.1f} over {(row.base or 0.0) / 2**20:,.1f} MiB"
    figures = f"{milliseconds(row.ours)} over {milliseconds(row.base)} ms"
    return f"{figures}; {row.reason}" if row.reason else figures


def epoch_table(epoch: dict[str, Any]) -> Table:
    timings = {name: Timing(**timing) for name, timing in epoch["timings"].items()}
    base = next(iter(timings.values())).median if timings else 0.0
    rows = [
        [name, ms(timing), f"{timing.spread * 100:.0f}", times(timing.median / base)]
        for name, timing in timings.items()
    ]
    title = "The paper's two-layer GAT on Cora: training step + validation"
    return Table(title, ("model", "epoch ms", "± %", "ours is"), rows)


def notes(report: Report) -> list[str]:
    """What has no time and why; where each graph came from, the floors, how far a layer was off."""
    lines = [LEGEND] if report.cases else []
    lines += missing(report)
    lines += target_notes(report)
    for case in report.cases:
        if not case.num_edges:
            continue
        floors = ", ".join(f"{limit.name} by {limit.note}" for limit in case.limits)
        errors = ", ".join(
            f"{peer.name} {peer.error:.0e}" for peer in case.peers if peer.error is not None
        )
        source, target = case.num_nodes
        nodes = f"{source:,}" if source == target else f"{source:,} + {target:,}"
        bandwidth = f"copy {case.copy_bandwidth / 1e9:.1f} GB/s" if case.copy_bandwidth else ""
        lines.append(
            f"{case_label(case)}: {case.note}; {nodes} nodes, {case.num_edges:,} edges, at most "
            f"{case.max_in_degree:,} into one; {case.shape}; {bandwidth}; {floors}; "
            f"error against float64: {errors}"
        )
        if case.foreign_cores is not None and case.foreign_cores > BUSY:
            lines.append(
                f"{case_label(case)}: other processes kept {case.foreign_cores} cores busy; "
                "these times are high"
            )
    return lines


def missing(report: Report) -> Iterator[str]:
    """Why a peer has no time or no peak, once for all the cases it is true of."""
    cases: dict[str, list[str]] = {}
    for case in report.cases:
        label = case_label(case)
        if not case.num_edges:
            cases.setdefault(f"{case.status}: {case.reason}", []).append(label)
        for peer in case.peers:
            if peer.status != "ok":
                cases.setdefault(f"{peer.name} {peer.status}: {peer.reason}", []).append(label)
            elif peer.peak is not None and peer.peak.bytes is None:
                cases.setdefault(f"{peer.name}, no peak: {peer.peak.reason}", []).append(label)
    for reason, labels in cases.items():
        yield f"{reason} ({', '.join(dict.fromkeys(labels))})"
    if report.epoch and report.epoch["reason"]:
        yield f"The epoch on Cora, PyG: {report.epoch['reason']}"


def target_notes(report: Report) -> list[str]:
    """Where the bounds count, the copy bandwidths behind the floors, and the graphs' sizes."""
    if report.targets is None:
        return []
    lines = []
    if not targets.applies(report):
        lines.append(
            f"The bounds are for one {targets.DEVICE}; on this device the ratios are what they "
            "are, and no bound is met or missed."
        )
    off = targets.suspects(report)
    rates = {
        (one.name, one.graph, one.shape): one.figures["bandwidth"] / 1e9
        for one in report.targets
        if "bandwidth" in one.figures
    }
    if rates:
        shown = ", ".join(
            f"{' '.join(group)} {rate:,.1f}{' (off)' if group in off else ''}"
            for group, rate in rates.items()
        )
        lines.append(
            "Floors: bytes of gatkernels/bench/traffic.py over the copy bandwidth measured in the "
            f"same process, GB/s: {shown}."
        )
    left = dict.fromkeys(
        f"{one.name} {one.kind} {one.graph} {one.shape}"
        for one in report.targets
        if one.status == "open"
    )
    if left:
        lines.append(f"Not reached before the deadline: {', '.join(left)}.")
    called = [
        f"{one.name} {one.kind} {one.graph} {one.layer} {one.shape} {one.dtype} "
        f"{one.figures['called step'] * 1e6:,.0f} us over {one.figures['step'] * 1e6:,.0f} us"
        for one in report.targets
        if "called step" in one.figures
    ]
    if called:
        lines.append(f"Short steps when the GPU waits for the host: {'; '.join(called)}.")
    sizes = {(one.graph, *one.size) for one in report.targets if one.size}
    drawn = "; ".join(f"{name} {nodes:,}, {edges:,}" for name, nodes, edges in sorted(sizes))
    lines += [f"Graphs drawn (nodes, edges): {drawn}."] if drawn else []
    projections = [
        f"{one.name} {one.figures['projection replay'] * 1e6:.1f} us"
        for one in report.targets
        if "projection replay" in one.figures
    ]
    if projections:
        alone = ", ".join(projections)
        lines.append(f"Layer of Cora's size, its dense products alone in a CUDA graph: {alone}.")
    return lines


def header(environment: dict[str, Any]) -> str:
    """The machine and the versions in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    commit = environment["commit"] or "unknown"
    changed = ", changed files" if environment["dirty"] else ""
    load = "/".join(f"{load:g}" for load in environment["load"]) or "unknown"
    return (
        f"{environment['device']}, {environment['threads']} threads of {environment['cores']} "
        f"cores, {environment['memory_gib']} GiB, {environment['system']}; {versions}; "
        f"commit {commit}{changed}; {environment['date']}, load {load}."
    )


def markdown_table(table: Table) -> str:
    lines = [
        f"| {' | '.join(table.columns)} |",
        f"|{'|'.join('---' if i < 2 else '---:' for i in range(len(table.columns)))}|",
        *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in table.rows),
    ]
    return "\n".join(lines)


def markdown(report: Report) -> str:
    parts = [header(report.environment)]
    for table in tables(report):
        parts += [f"**{table.title}**", markdown_table(table)]
    parts.append("\n".join(f"- {line}" for line in notes(report)))
    return "\n\n".join(part for part in parts if part) + "\n"


def show(report: Report) -> None:
    """Print the machine, the tables and the notes."""
    print(header(report.environment))
    show_tables(tables(report))
    print("\n".join(notes(report)))


def show_tables(found: Sequence[Table]) -> None:
    """Print tables, with rich where it is installed; a repeated first cell is left blank."""
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        for table in found:
            print(f"{table.title}\n\n{markdown_table(table)}\n")
        return
    console = Console() if Console().is_terminal else Console(width=WIDTH)
    for table in found:
        rich = RichTable(
            title=table.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
            show_edge=False,
        )  # fmt: skip
        for place, column in enumerate(table.columns):
            rich.add_column(column, justify="left" if place < 2 else "right")
        before = None
        for row in table.rows:
            if before is not None and row[0] != before:
                rich.add_section()
            rich.add_row("" if row[0] == before else row[0], *row[1:])
            before = row[0]
        console.print(rich)
