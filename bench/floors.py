"""The CPU operators over their floor: the time that adding up the same rows takes, without weights.

python bench/floors.py                                  # all cases, one thread
python bench/floors.py --graphs cache --operators dot
python bench/floors.py --before old/_cpu.cpython-*.so   # also an older build, in the same turns
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import math
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import gatkernels
from gatkernels import Graph
from gatkernels.backends import native

#: Nodes, and edges that are drawn: uniformly where they fit the cache, else with RMAT's skew.
GRAPHS = {"cache": (4142, 2_500_000), "middle": (1 << 17, 2_400_000), "large": (1 << 18, 8_000_000)}
SHAPES = ("8x8", "8x16", "4x64", "1x40", "4x32")
#: Rows per edge that an operator has to read, forward and backward.
ROWS = {"gat": (1, 1), "gatv2": (1, 3), "dot": (2, 4)}
COLUMNS = ["graph", "shape", "operator", "phase", "module", "ns an edge", "ns of the floor"]
FLAGS = {"avx2": ["-mavx2", "-mfma"], "avx512": ["-march=native"], "baseline": []}

SUMS = """
#include <cstdint>
template <int kTile>
static void sums(const int64_t* rowptr, const int32_t* col, const float* rows, float* out,
                 int64_t nodes, int64_t width) {
    #pragma omp parallel for schedule(dynamic, 64)
    for (int64_t i = 0; i < nodes; ++i) {
        for (int64_t tile = 0; tile < width; tile += kTile) {
            float sum[kTile] = {};
            for (int64_t e = rowptr[i]; e < rowptr[i + 1]; ++e) {
                const int64_t ahead = e + 16 < rowptr[nodes] ? col[e + 16] : 0;
                if (tile == 0)
                    for (int64_t c = 0; c < width; c += 16)
                        __builtin_prefetch(rows + ahead * width + c);
                const float* row = rows + col[e] * width + tile;
                for (int c = 0; c < kTile; ++c) sum[c] += row[c];
            }
            for (int c = 0; c < kTile; ++c) out[i * width + tile + c] = sum[c];
        }
    }
}
extern "C" void gather_sum(const int64_t* rowptr, const int32_t* col, const float* rows, float* out,
                           int64_t nodes, int64_t width) {
    if (width % 64 == 0) return sums<64>(rowptr, col, rows, out, nodes, width);
    if (width == 40) return sums<40>(rowptr, col, rows, out, nodes, width);
    if (width % 8 == 0) return sums<8>(rowptr, col, rows, out, nodes, width);
    return sums<1>(rowptr, col, rows, out, nodes, width);
}
"""


def gather_sum(isa: str) -> Callable[[Tensor, Tensor, Tensor, Tensor], None]:
    """The floor, compiled for the instruction set."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "sums.cpp"), Path(folder, "sums.so")
        source.write_text(SUMS)
        command = ["c++", "-O3", "-fopenmp", "-shared", "-fPIC", *FLAGS[isa]]
        subprocess.run([*command, str(source), "-o", str(library)], check=True)
        found = ctypes.CDLL(str(library)).gather_sum

    def run(rowptr: Tensor, col: Tensor, rows: Tensor, out: Tensor) -> None:
        pointers = (ctypes.c_void_p(t.data_ptr()) for t in (rowptr, col, rows, out))
        found(*pointers, ctypes.c_int64(out.shape[0]), ctypes.c_int64(rows.shape[1]))

    return run


def graph_of(name: str) -> Graph:
    nodes, edges = GRAPHS[name]
    rng = np.random.default_rng(0)
    if name == "cache":
        ends = rng.integers(0, nodes, (2, edges))
    else:
        ends = np.zeros((2, edges), np.int64)
        for _ in range(nodes.bit_length() - 1):
            quarter = rng.choice(4, edges, p=[0.57, 0.19, 0.19, 0.05])
            ends = ends * 2 + np.stack([quarter // 2, quarter % 2])
    return Graph.from_edge_index(torch.from_numpy(ends), nodes)


class Case(NamedTuple):
    graph: str
    shape: str
    operator: str


def phases(case: Case, graph: Graph, floor: Any) -> dict[str, Callable[[], float]]:
    """Seconds of a turn of each phase, and of its floor."""
    heads, channels = map(int, case.shape.split("x"))
    nodes, width = graph.num_dst, heads * channels
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    if case.operator == "gat":
        inputs = [normal(nodes, heads, channels), normal(nodes, heads), normal(nodes, heads)]
        call: Callable[..., Any] = gatkernels.gat_attention
    elif case.operator == "gatv2":
        inputs = [*(normal(nodes, heads, channels) for _ in range(2)), normal(heads, channels)]
        call = gatkernels.gatv2_attention
    else:
        inputs = [normal(nodes, heads, channels) for _ in range(3)]
        call = gatkernels.dot_attention
    for t in inputs:
        t.requires_grad_()
    gradient, rows, sums = (
        normal(nodes, heads, channels),
        normal(nodes, width),
        normal(nodes, width),
    )
    last: list[Tensor] = []

    def timed(work: Callable[[], Any]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def forward() -> float:
        last.clear()
        return timed(lambda: last.append(call(graph, *inputs)))

    def backward() -> float:
        return timed(lambda: torch.autograd.grad(last[0], inputs, gradient))

    return {
        "forward": forward,
        "backward": backward,
        "floor of forward": lambda: timed(lambda: floor(graph.rowptr, graph.col, rows, sums)),
        "floor of backward": lambda: timed(lambda: floor(graph.colptr, graph.row, rows, sums)),
    }


def measure(
    case: Case, graph: Graph, floor: Any, modules: dict[str, Any], turns: int
) -> dict[str, dict[str, float]]:
    """By module and phase, nanoseconds an edge: the least of interleaved turns."""
    run = phases(case, graph, floor)
    best: dict[str, dict[str, float]] = {name: dict.fromkeys(run, math.inf) for name in modules}
    for turn in range(turns):
        order = list(modules.items())
        for name, module in order if turn % 2 else reversed(order):
            native._cpu = module
            for phase, seconds in run.items():
                best[name][phase] = min(best[name][phase], seconds() * 1e9 / graph.num_edges)
    return best


def loaded(path: Path) -> Any:
    # by a name of its own: of two modules of one name the second would be the first again
    spec = importlib.util.spec_from_file_location(f"before{abs(hash(path))}._cpu", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=list(GRAPHS))
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES[:4]), metavar="HxC")
    parser.add_argument("--operators", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--before", type=Path, help="a compiled module gatkernels._cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    isa = native.cpu_module().isa
    modules = {"now": native.cpu_module()}
    if args.before:
        modules["before"] = loaded(args.before)
    floor, ratios, rows = gather_sum(isa), dict[str, list[float]](), []
    print(f"{isa}, {args.threads} thread(s), ns an edge, in brackets over the floor of its rows")
    for name in args.graphs:
        graph = graph_of(name)
        for operator in args.operators:
            for shape in args.shapes:
                case = Case(name, shape, operator)
                best = measure(case, graph, floor, modules, args.turns)
                line = f"{name:7s}{operator:6s}{shape:6s}"
                for phase, count in zip(("forward", "backward"), ROWS[operator], strict=True):
                    under = count * min(b[f"floor of {phase}"] for b in best.values())
                    for module, found in best.items():
                        ratio = found[phase] / under
                        ratios.setdefault(f"{operator} {phase} {module}", []).append(ratio)
                        line += f"  {phase} {module} {found[phase]:7.2f} ({ratio:5.2f})"
                        rows.append([*case, phase, module, round(found[phase], 2), round(under, 2)])
                print(line, flush=True)
    for key, found in ratios.items():
        print(f"{key:26s} {math.exp(sum(map(math.log, found)) / len(found)):5.2f}")
    if args.json:
        header = {"isa": isa, "threads": args.threads, "columns": COLUMNS}
        lines = ",\n".join(json.dumps(row) for row in rows)
        args.json.write_text(f'{json.dumps(header)[:-1]}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
