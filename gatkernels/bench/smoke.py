"""Every attention, backend and dtype once against float64: `python -m gatkernels.bench.smoke`.

Each has a process of its own, several at a time, so that Triton compiles side by side and a crash
costs one line. Lines appear as they come.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch

from gatkernels.backends import Case, supports
from gatkernels.bench import operators, process
from gatkernels.bench.cases import DTYPES, Spec
from gatkernels.bench.process import ChildError, Tick
from gatkernels.functional import DOT_BACKENDS

#: Part of arxiv: hubs of several chunks, tiny rows and an order of the rows.
SCALE = 0.125


def check(spec: Spec, backend: str, tick: Tick) -> float:
    """:func:`operators.excess` of one step: right up to 1."""
    edges, graph = operators._graph(spec)
    return operators.excess(operators.Operator(spec, edges, graph, backend))


def outcomes(
    device: str, backends: list[str], scale: float, at_once: int
) -> Iterator[tuple[str, str, bool]]:
    """Names of the cases, what became of them, and whether that is well."""
    cases = [
        (backend, Spec("arxiv", "4x16", layer, dtype, device, scale))
        for backend in backends
        for dtype in DTYPES
        for layer in operators.OPERATORS
        if layer != "dot" or backend in DOT_BACKENDS
    ]

    def one(backend: str, spec: Spec) -> tuple[str, bool]:
        call = Case(torch.device(device), DTYPES[spec.dtype])
        if reason := supports(backend, call):
            return f"FAIL: {reason}", False
        try:
            excess = process.call(check, spec, backend, threads=1, device=device, timeout=120.0)
        except ChildError as error:
            return f"FAIL: {error.status}, {error.reason}", False
        return f"{excess:.2f} of what is allowed", excess <= 1.0

    with ThreadPoolExecutor(at_once) as pool:
        jobs = {pool.submit(one, *case): case for case in cases}
        for job in as_completed(jobs):
            backend, spec = jobs[job]
            yield f"{backend} {spec.layer} {spec.dtype}", *job.result()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backends", nargs="+", default=["cuda", "triton"])
    parser.add_argument("--scale", type=float, default=SCALE, help="part of arxiv (%(default)s)")
    parser.add_argument("--at-once", type=int, default=min(8, os.cpu_count() or 1))
    args = parser.parse_args()
    failed = 0
    for name, text, well in outcomes(args.device, args.backends, args.scale, args.at_once):
        print(f"{name:24} {text}", flush=True)
        failed += not well
    print(f"{failed} failed" if failed else "all right", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
