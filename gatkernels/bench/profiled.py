"""A few steps of an operator for a profiler: `ncu ... python -m gatkernels.bench.profiled gatv2`.

Two steps warm up, the third is to be looked at; nothing is checked and nothing is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gatkernels.bench import operators
from gatkernels.bench.cases import DTYPES, Spec
from gatkernels.bench.drawn import SIZES


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("layer", choices=list(operators.OPERATORS))
    parser.add_argument("--graph", choices=list(SIZES), default="reddit")
    parser.add_argument("--shape", default="4x64")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args(argv)
    spec = Spec(args.graph, args.shape, args.layer, args.dtype, args.device, args.scale)
    edges, graph = operators._graph(spec)
    step = operators.Operator(spec, edges, graph, args.backend)
    for _ in range(args.steps):
        step.forward()
        step.backward()
    print(f"{args.steps} steps of {spec.name}, {graph.num_edges:,} edges, {args.backend}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
