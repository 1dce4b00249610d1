"""Write what both READMEs say of speed, from the committed results: `python bench/readme.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from gatkernels.bench import targets
from gatkernels.bench.report import (
    Table,
    bound,
    case_label,
    markdown_table,
    met,
    ms,
    summary,
    times,
)
from gatkernels.bench.results import CaseResult, PeerResult, Report, load

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- speed: begin (python bench/readme.py) -->\n", "<!-- speed: end -->\n"
#: The cases of the README's table, in its order; whichever a result holds.
CASES = (
    "cora gat 8x8",
    "arxiv gat 8x8",
    "arxiv gat 8x16",
    "arxiv gatv2 8x16",
    "arxiv gatv2 4x64",
    "cnr-2000 gat 8x8",
    "gowalla gat 8x8",
    "tolokers gat 8x8",
    "ppi gat 4x256",
    "products gat 8x8",
    "reddit gat 8x8",
    "hub gat 8x8",
)
PEERS = {"dgl": "DGL", "pyg": "PyG", "pyg-compiled": "PyG compiled", "reference": "naive"}
LARGE = 1_000_000  # edges


def reports() -> dict[str, Report]:
    """Every committed result by the name of its folder."""
    return {path.parent.name: load(path) for path in sorted(RESULTS.glob("*/results.json"))}


def section(found: dict[str, Report]) -> str:
    """What the project's README says: a sentence to remember, the table, a chart, as Markdown."""
    rows = []
    for name in CASES:
        rows += [_row(folder, case) for folder, case in _cases(found, name)]
    if not rows:
        return "No results yet.\n"
    columns = ("graph, layer", "edges", "ours, ms", *PEERS.values())
    columns += ("peak MiB: ours", "DGL", "PyG", "file")
    parts = [
        f"**On graphs of a million edges and more, {_span(found, 'dgl')} and "
        f"{_span(found, 'pyg')} as long as ours**, on the same two CPU threads. The table's "
        "columns of peers say how many times as long, within one run, for one layer (projection "
        "and attention), forward + backward, float32 unless named; every result was compared with "
        "the float64 reference before it was timed. Machines, versions, all cases and the GPU's "
        "figures: [bench/README.md](bench/README.md).",
        markdown_table(Table("", columns, rows)),
    ]
    if epoch := next((report.epoch for report in found.values() if report.epoch), None):
        seconds = {name: timing["median"] for name, timing in epoch["timings"].items()}
        if {"gatkernels", "pyg"} <= set(seconds):
            ours, pyg = seconds["gatkernels"], seconds["pyg"]
            parts.append(
                "A training epoch of the paper's GAT on Cora (dense features, with validation) "
                f"takes {ours * 1e3:.2f} ms; built from PyG's layers, {pyg * 1e3:.2f} ms "
                f"({times(pyg / ours)})."
            )
    parts.append("![Time against the number of edges](bench/results/cpu-2-threads/edges.png)")
    return "\n\n".join(parts) + "\n"


def details(found: dict[str, Report]) -> str:
    """What the benchmarks' README says: machines, another chart, the GPU targets."""
    parts = [
        "\n".join(f"- {line}" for line in _machines(found)),
        "![Step times of all peers, relative to ours](results/cpu-2-threads/layers.png)",
        *_targets(found),
    ]
    return "\n\n".join(parts) + "\n"


def _span(found: dict[str, Report], name: str) -> str:
    """The smallest and largest ratio of a peer on the table's large graphs."""
    ratios = [
        ratio
        for known in CASES
        for _, case in _cases(found, known)
        if case.num_edges >= LARGE and (ratio := case.ratio(name)) is not None
    ]
    return f"{PEERS[name]} takes {min(ratios):.1f} to {max(ratios):.0f} times"


def _targets(found: dict[str, Report]) -> list[str]:
    """The targets with the worst case of each, from the last result on each card they are for."""
    last: dict[str, tuple[str, Report]] = {}
    for folder, report in sorted(found.items(), key=lambda item: item[1].environment["date"]):
        card = targets.card(report)
        if report.targets is not None and card is not None:
            last[card] = folder, report
    measured = {card: dict(_by_target(report)) for card, (_, report) in last.items()}

    def cell(card: str, target: targets.Target) -> str:
        own = measured.get(card, {}).get(target.name, [])
        verdict = met(last[card][1], own) if own else ""
        return f"{summary(own)}{', met' if verdict == 'yes' else ''}" if own else "open"

    columns = "backend", "target", "bound", *(f"worst case, {card}" for card in targets.CARDS)
    rows = [
        [target.backend, target.what, bound(target), *(cell(c, target) for c in targets.CARDS)]
        for target in targets.TARGETS
    ]
    folders = ", ".join(f"`bench/results/{folder}`" for folder, _ in last.values())
    where = (
        f"Every case is in {folders}."
        if folders
        else "All open: no result from one has been committed yet."
    )
    return [
        f"The targets for one {targets.DEVICE}, measured by `bench/gpu.sh quick`. {where}",
        markdown_table(Table("", columns, rows)),
    ]


def _by_target(report: Report) -> Iterable[tuple[str, list[targets.Row]]]:
    for target, own in targets.by_target(targets.rows(report)):
        yield target.name, own


def _cases(found: dict[str, Report], name: str) -> Iterable[tuple[str, CaseResult]]:
    for folder, report in found.items():
        case = report.case(name)
        if case is not None and case.ours is not None:
            yield folder, case


def _row(folder: str, case: CaseResult) -> list[str]:
    ours = case.ours
    assert ours is not None
    cells = [case_label(case), f"{case.num_edges:,}", ms(ours.timings["step"])]
    cells += [_ratio(case, case.peer(name)) for name in PEERS]
    cells += [_peak(case.peer(name)) for name in (ours.name, "dgl", "pyg")]
    busy = " (a)" if (case.foreign_cores or 0) > 0.15 else ""
    return [*cells, f"`{folder}`{busy}"]


def _ratio(case: CaseResult, peer: PeerResult | None) -> str:
    if peer is None or peer.status == "skipped":
        return ""
    return times(case.ratio(peer.name)) if peer.timings else peer.status


def _peak(peer: PeerResult | None) -> str:
    if peer is None:
        return ""
    if peer.status == "OOM":
        return "OOM"
    if peer.peak is None or peer.peak.bytes is None:
        return ""
    return f"{peer.peak.bytes / 2**20:,.1f}"


def _machines(found: dict[str, Report]) -> Iterable[str]:
    for folder, report in found.items():
        env = report.environment
        changed = " with changes" if env["dirty"] else ""
        versions = env["versions"]
        yield (
            f"`{folder}`: {env['threads']} threads of {env['device']}, {env['memory_gib']} GiB; "
            f"torch {versions['torch']}, PyG {versions['torch-geometric']}, DGL "
            f"{versions['dgl']}; {env['date'][:10]}, commit {env['commit']}{changed}."
        )
    if any((case.foreign_cores or 0) > 0.15 for report in found.values() for case in report.cases):
        yield "(a) Other processes kept part of a core busy while this was timed."


def replaced(readme: str, text: str) -> str:
    """The README with `text` between the markers. Raises: ValueError where they are missing."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"a README needs the lines {BEGIN.strip()} and {END.strip()}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def written(found: dict[str, Report]) -> dict[Path, str]:
    """The text between the markers of each file."""
    return {ROOT / "README.md": section(found), ROOT / "bench" / "README.md": details(found)}


def main() -> int:
    for path, text in written(reports()).items():
        path.write_text(replaced(path.read_text(), text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
