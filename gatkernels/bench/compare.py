"""Two results side by side: what got faster or slower beyond noise."""

from __future__ import annotations

from gatkernels.bench.measure import Timing
from gatkernels.bench.report import Table, case_label, ms, times
from gatkernels.bench.results import CaseResult, Report

#: Medians closer than this are the same, whatever their quartiles say.
SAME = 0.05


def verdict(before: Timing, after: Timing) -> str:
    """ "faster" or "slower" where the quartiles do not overlap and the medians differ by 5 %."""
    if abs(after.median / before.median - 1.0) <= SAME:
        return "same"
    if after.q3 < before.q1:
        return "faster"
    if after.q1 > before.q3:
        return "slower"
    return "within noise"


def compare(before: Report, after: Report) -> Table:
    """Every step that both hold, the limits too: they show whether the machine changed."""
    rows = []
    for case in before.cases:
        other = after.case(case.name)
        if other is None or other.scale != case.scale:
            continue
        now = _steps(other)
        for name, timing in _steps(case).items():
            if name in now:
                ratio = times(now[name].median / timing.median)
                cells = [ms(timing), ms(now[name]), ratio, verdict(timing, now[name])]
                rows.append([case_label(case), name, *cells])
        rows += _changed_status(case, other)
    columns = ("case", "peer", "before ms", "after ms", "after/before", "verdict")
    return Table("Step times", columns, rows)


def _steps(case: CaseResult) -> dict[str, Timing]:
    found = {peer.name: peer.timings["step"] for peer in case.peers if peer.timings}
    return {**found, **{f"({limit.name})": limit.timings["step"] for limit in case.limits}}


def _changed_status(before: CaseResult, after: CaseResult) -> list[list[str]]:
    rows = []
    for peer in before.peers:
        now = after.peer(peer.name)
        if now is not None and now.status != peer.status:
            change = [peer.status, now.status, "", "changed"]
            rows.append([case_label(before), peer.name, *change])
    return rows


def differences(before: Report, after: Report) -> list[str]:
    """What else is not the same about the two runs, one line each."""
    names = ("device", "threads", "versions", "commit", "load", "omp_wait_policy")
    return [
        f"{name}: {before.environment.get(name)} -> {after.environment.get(name)}"
        for name in names
        if before.environment.get(name) != after.environment.get(name)
    ]
