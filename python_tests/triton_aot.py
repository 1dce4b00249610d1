"""Compiles the Triton kernels for a GPU that need not be there, and reports on the machine code.

``python triton_aot.py cuda:90`` calls the backend's own functions on small CPU tensors; every
launch is compiled for the target, exactly as it would be there, instead of run. Each line of the
output is a JSON object about one kernel.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from graphs import GRAPHS, random_inputs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from gatkernels.backends import schedule
from gatkernels.backends import triton as kernels
from gatkernels.backends.triton import dots, job
from gatkernels.backends.triton.tiling import DotTile, Tile
from gatkernels.ops import checks
from gatkernels.ops.call import (
    DotCall,
    DotGrads,
    DotInputs,
    DotSaved,
    DotScoring,
    Edges,
    GatCall,
    GatInputs,
    GatSaved,
    OutGrads,
    RowwiseCall,
    RowwiseInputs,
    RowwiseSaved,
    Scoring,
)

#: Heads, channels, dtype, and whether there are edge scores, dropout and a gradient of attention.
#: "wide" is for all kernels, the others are for those that gather rows.
CASES = {
    "wide": (4, 64, torch.float32, False),
    "everything": (8, 8, torch.float32, True),
    "bfloat16": (4, 64, torch.bfloat16, True),
    "odd": (2, 7, torch.float16, True),
    "many warps": (4, 256, torch.float32, False),
    "float64": (4, 32, torch.float64, False),
}
#: On a small graph, whose rows come as they are numbered; all kernels do on a large one.
UNORDERED = {"everything", "bfloat16", "odd"}
GATHER = {
    "separable.forward",
    "separable_backward.backward",
    "rowwise.forward",
    "rowwise.alpha",
    "rowwise_backward.by_destination",
    "rowwise_backward.by_source",
    "dot.forward",
    "dot.alpha",
    "dot_backward.by_destination",
    "dot_backward.by_source",
}
FEATURES = 8  # of edges, for dot products
SEED = torch.tensor([5])


class Target:
    """Stands for the driver of a GPU of this kind."""

    def __init__(self, name: str) -> None:
        backend, _, arch = name.partition(":")
        self.target = GPUTarget(backend, *((int(arch), 32) if backend == "cuda" else (arch, 64)))

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def nvidia(cubin: bytes) -> dict[str, Any]:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tools / "cuobjdump"), "-sass", "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers = re.search(r"REG:(\d+)", text)
    assert registers is not None
    return {
        "registers": int(registers[1]),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", text)),
        "wide_loads": len(re.findall(r"\bLDG\.E(?:\.\w+)*\.128\b", text)),
    }


def amd(assembly: str) -> dict[str, Any]:
    # scalar registers spill to lanes of vector ones, which costs no memory access
    counts = re.findall(r"\.vgpr_spill_count: *(\d+)", assembly)
    accesses = re.findall(r"\bscratch_(?:load|store)_", assembly)
    registers = re.search(r"\.vgpr_count: *(\d+)", assembly)
    assert registers is not None
    return {
        "registers": int(registers[1]),
        "spills": sum(map(int, counts)) + len(accesses),
        "wide_loads": len(re.findall(r"(?:buffer|global)_load_dwordx4", assembly)),
    }


def narrow_products(ttir: str) -> list[str]:
    """Products of tensors in 32 bits other than head * C, ``[BH, 1]``: addresses that overflow."""
    shapes = re.findall(r"arith\.muli .*: (tensor<[\dx]*xi32>)", ttir)
    return [shape for shape in shapes if not re.fullmatch(r"tensor<\d+(x1)?xi32>", shape)]


def compile_all(case: str, drivers: Target) -> None:
    heads, channels, dtype, everything = CASES[case]

    def report(kernel: Any, programs: int, cut: Tile | DotTile, *args: Any) -> None:
        name = f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__}"
        if case != "wide" and name not in GATHER:
            return
        grid = (programs, cut.groups)
        built = kernel.warmup(*args, **job.constants(cut), grid=grid)
        found = nvidia(built.asm["cubin"]) if "cubin" in built.asm else amd(built.asm["amdgcn"])
        found["case"], found["kernel"], found["gathers"] = case, name, name in GATHER
        threads = cut.warps * drivers.target.warp_size
        widths = cut.BC if isinstance(cut, Tile) else cut.k.BC
        if isinstance(cut, DotTile) and name != "dot.alpha":
            widths += cut.v.BC
        found["row_bytes_per_thread"] = cut.big.edges * cut.BH * widths * dtype.itemsize / threads
        if not everything:  # Philox multiplies in 32 bits, too
            found["narrow_products"] = narrow_products(built.asm["ttir"])
        print(json.dumps(found), flush=True)

    for module in (kernels, dots, job):
        module.launch = report
    schedule.ORDERED = 1 << 30 if case in UNORDERED else 0
    graph = GRAPHS["hub_chunks"]()
    by_row, by_column = graph.schedules("triton")
    csr = Edges(graph.rowptr, graph.col, graph.eid, by_row)
    csc = Edges(graph.colptr, graph.row, graph.ceid, by_column)
    inputs = random_inputs(
        graph, heads, channels, dtype, edge_score=everything, attention=everything
    )
    sums = checks.SUM_DTYPES[dtype]
    scoring = Scoring(0.2, 0.6 if everything else 0.0, SEED)
    edge_score = None if inputs.edge_score is None else inputs.edge_score.to(sums)
    scores = inputs.score_src.to(sums), inputs.score_dst.to(sums), edge_score
    grad_alpha = None if inputs.grad_alpha is None else inputs.grad_alpha.to(sums)
    grads = OutGrads(inputs.grad_out, grad_alpha)
    atts = (torch.zeros(1, heads, channels, dtype=sums),) * 2
    call = GatCall(csr, GatInputs(inputs.x, *scores, None, None), scoring)
    forward = kernels.gat_forward(call, True, True)
    kernels.gat_alpha(call, forward[2])
    of_features = call._replace(inputs=GatInputs(inputs.x, *scores, *atts))
    kernels.node_scores(of_features)
    found = kernels.gat_destinations(of_features, GatSaved(*forward, grad_alpha), grads)
    kernels.gat_sources(of_features, csc, found, grads, True)

    att = torch.zeros(heads, channels, dtype=sums)
    edge = torch.zeros(graph.num_edges, heads, channels, dtype=dtype) if everything else None
    rows = RowwiseInputs(inputs.x, inputs.grad_out, att, edge)
    by_rows = RowwiseCall("gatv2", csr, rows, scoring)
    out, stats = kernels.rowwise_forward(by_rows, True)
    kernels.rowwise_alpha(by_rows, stats)
    by_row = kernels.rowwise_destinations(
        by_rows, RowwiseSaved(out, stats, grad_alpha), grads, True
    )
    kernels.rowwise_sources(by_rows, csc, by_row.fields, grads)

    q, k, v = inputs.grad_out, inputs.x, inputs.x.clone()
    edge = torch.zeros(graph.num_edges, FEATURES, dtype=dtype) if everything else None
    query = torch.zeros(graph.num_dst, heads, FEATURES, dtype=dtype) if everything else None
    dot_scoring = DotScoring(0.1, scoring.dropout, SEED)
    by_dots = DotCall(csr, DotInputs(q, k, v, edge, query), dot_scoring)
    out, edge_out, stats = kernels.dot_forward(by_dots, True)
    kernels.dot_alpha(by_dots, stats)
    of_dots = DotGrads(inputs.grad_out, query, grad_alpha)
    left = DotSaved(out, edge_out, stats, grad_alpha)
    of_rows = kernels.dot_destinations(by_dots, left, of_dots, True)
    kernels.dot_sources(by_dots, csc, of_rows.fields, of_dots)


if __name__ == "__main__":
    active = Target(sys.argv[1])
    driver.set_active(active)
    for name in sys.argv[2:]:
        compile_all(name, active)
