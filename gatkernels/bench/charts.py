"""PNG charts of a result, at the width of a README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatkernels import disk
from gatkernels.bench.report import case_label
from gatkernels.bench.results import CaseResult, Curve, Report
from gatkernels.extras import require

#: Okabe and Ito's palette, which colour-blind readers can tell apart; markers differ as well.
LOOKS = {
    "reference": ("#000000", "X"),
    "pyg": ("#D55E00", "s"),
    "pyg-compiled": ("#E69F00", "D"),
    "dgl": ("#009E73", "^"),
    "torch-sparse": ("#CC79A7", "v"),
    "dgnn": ("#CC79A7", "P"),
    "turbo-gnn": ("#F0E442", "h"),
}
OUR_LOOKS = {
    "gatkernels-cpu": ("#0072B2", "o"),
    "gatkernels-cuda": ("#0072B2", "o"),
    "gatkernels-triton": ("#56B4E9", "*"),
}
OTHER_LOOK = ("#999999", "<")
LIMIT_LINES = {"(projection)": "-.", "(gather-sum)": ":"}
SIZE = (8.0, 4.6)  # inches
DPI = 130

AXES = {
    "edges": ("edges", "forward + backward, ms", "Time against edges (8 heads of 8)"),
    "memory": ("edges", "peak memory, MiB", "Memory of forward + backward against edges"),
    "width": ("heads x channels", "forward + backward, ms", "Time against width (0.5 M edges)"),
    "threads": ("threads", "forward + backward, ms", "Time against threads (0.5 M edges, 8x8)"),
}
UNITS = {"memory": 2.0**-20}


def draw(report: Report, folder: Path) -> list[Path]:
    """Draw what the result holds into `folder`; return the files written.

    Raises: MissingExtraError without matplotlib.
    """
    require("matplotlib", "matplotlib", "bench").use("Agg")
    plots = require("matplotlib.pyplot", "matplotlib", "bench")
    written = []
    timed = [case for case in report.cases if case.ours is not None]
    if timed:
        written.append(_save(plots, _ratios(plots, timed), folder / "layers.png"))
    for figure in AXES:
        lines = [line for line in report.curves if line.figure == figure]
        if lines:
            written.append(_save(plots, _curves(plots, figure, lines), folder / f"{figure}.png"))
    return written


def _save(plots: Any, figure: Any, path: Path) -> Path:
    disk.write(path, lambda part: figure.savefig(part, dpi=DPI, bbox_inches="tight"))
    plots.close(figure)
    return path


def _style(name: str) -> dict[str, Any]:
    """One look per peer in every chart: ours bold, limits grey."""
    if name in LIMIT_LINES:
        return {"color": "0.5", "linestyle": LIMIT_LINES[name], "marker": "", "zorder": 1}
    ours = name in OUR_LOOKS
    color, marker = {**LOOKS, **OUR_LOOKS}.get(name, OTHER_LOOK)
    width, order = (2.6, 4) if ours else (1.6, 3)
    return {"color": color, "marker": marker, "linewidth": width, "zorder": order}


def _ratios(plots: Any, cases: Sequence[CaseResult]) -> Any:
    """A row per case; how many times our step every peer's takes, on a log axis."""
    height = 1.5 + 0.27 * len(cases)
    figure, axes = plots.subplots(figsize=(SIZE[0], height))
    names = list(dict.fromkeys(peer.name for case in cases for peer in case.peers))
    largest = max(case.ratio(peer.name) or 1.0 for case in cases for peer in case.peers)
    edge = largest * 1.6
    for name in names:
        look = {key: value for key, value in _style(name).items() if key in ("color", "marker")}
        found = [(case.ratio(name), row) for row, case in enumerate(cases)]
        x = [ratio for ratio, _ in found if ratio is not None]
        y = [row for ratio, row in found if ratio is not None]
        if x:
            axes.plot(x, y, linestyle="", markersize=7, label=name, **look, clip_on=False)
        for row, case in enumerate(cases):
            peer = case.peer(name)
            if peer is not None and peer.status == "OOM":
                place = edge * 1.25 ** sum(
                    other.status == "OOM" for other in case.peers[: case.peers.index(peer)]
                )
                axes.plot([place], [row], linestyle="", markersize=7, fillstyle="none", **look)
    axes.axvline(1.0, color="0.6", linewidth=1)
    axes.set_xscale("log")
    smallest = min(case.ratio(peer.name) or 1.0 for case in cases for peer in case.peers)
    marks = ratio_ticks(smallest, largest)
    axes.set_xticks(marks, [f"{mark:g}x" for mark in marks])
    axes.minorticks_off()
    axes.set_yticks(range(len(cases)), [case_label(case) for case in cases], fontsize=9)
    axes.set_ylim(len(cases) - 0.5, -0.7)
    axes.set_xlabel("forward + backward, times as long as ours (hollow: out of memory)")
    axes.grid(axis="both", color="0.9")
    axes.set_axisbelow(True)
    axes.legend(
        loc="lower center", ncols=len(names), frameon=False, bbox_to_anchor=(0.4, 1.0), fontsize=9,
        columnspacing=1.2, handletextpad=0.2,
    )  # fmt: skip
    return figure


def ratio_ticks(smallest: float, largest: float) -> list[float]:
    """Round numbers over the range of ratios, few enough that their labels stay apart."""
    for steps in ((1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0,)):
        marks = [step * 10.0**power for power in range(-3, 7) for step in steps]
        first = max((i for i, mark in enumerate(marks) if mark <= min(smallest, 1.0)), default=0)
        last = next((i for i, mark in enumerate(marks) if mark >= largest), len(marks) - 1)
        if last - first < 9:
            break
    return [round(mark, 6) for mark in marks[first : max(last, first + 1) + 1]]


def _curves(plots: Any, figure_name: str, lines: Sequence[Curve]) -> Any:
    """One line per peer; where it ran out of memory, a cross above its last point."""
    figure, axes = plots.subplots(figsize=SIZE)
    unit = UNITS.get(figure_name, 1e3)
    for line in lines:
        points = [(x, y * unit) for x, y in zip(line.x, line.y, strict=True) if y is not None]
        if not points:
            continue
        full = [x for x, note in zip(line.x, line.notes, strict=True) if note == "OOM"]
        label = f"{line.peer} (out of memory at {full[0]:.2g})" if full else line.peer
        axes.plot(*zip(*points, strict=True), label=label, **_style(line.peer))
    across, up, title = AXES[figure_name]
    if figure_name == "threads":
        ticks = sorted({x for line in lines for x in line.x})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    else:
        axes.set_xscale("log", base=2 if figure_name == "width" else 10)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    if figure_name == "width":
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel=across, ylabel=up)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
