"""Every allocation of the CPU kernels fails once: an error, and the process goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gatkernels.backends import native

#: Loaded before the C library: an allocation that the module asks for fails when its turn comes.
FAILING = r"""
#include <dlfcn.h>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <new>

static std::atomic<long> turn{-1};  // allocations until one fails; below zero, none does
extern "C" void fail_at(long n) { turn = n; }
extern "C" long left() { return turn; }

static bool fails(void* caller) {
  Dl_info info;
  const bool ours = turn >= 0 && dladdr(caller, &info) && strstr(info.dli_fname, "gatkernels/_cpu");
  return ours && turn-- == 0;
}
extern "C" void* aligned_alloc(size_t alignment, size_t size) {
  using Function = void* (*)(size_t, size_t);
  static auto* next = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "aligned_alloc"));
  return fails(__builtin_return_address(0)) ? nullptr : next(alignment, size);
}
void* operator new(size_t size) {
  static auto* next = reinterpret_cast<void* (*)(size_t)>(dlsym(RTLD_NEXT, "_Znwm"));
  if (fails(__builtin_return_address(0))) throw std::bad_alloc();
  return next(size);
}
"""

PROGRAM = """
import ctypes, gc, torch
torch.set_num_threads({threads})
from gatkernels import Graph, dot_attention, gat_attention, gatv2_attention
from gatkernels.functional import gat_attention_of_features

failing = ctypes.CDLL(None)
failing.left.restype = ctypes.c_long
generator = torch.Generator().manual_seed(0)
edges = torch.randint(0, 60, (2, 9_000), generator=generator)
edges[1, :5000] = 7  # a hub of several chunks
def normal(*shape):
    return torch.randn(shape, generator=generator).requires_grad_()
x, scores, att = normal(60, 2, 4), normal(60, 2), normal(2, 4)
calls = {{
    "graph": lambda graph: Graph.from_edge_index(edges, 60),
    "gat": lambda graph: gat_attention(graph, x, scores, scores),
    "features": lambda graph: gat_attention_of_features(graph, x, att[None], att[None])[0],
    "gatv2": lambda graph: gatv2_attention(graph, x, x, att),
    "dot": lambda graph: dot_attention(graph, x, x, x),
}}
def step(call):
    result = call(graph)
    if isinstance(result, torch.Tensor):
        result.sum().backward()

graph = Graph.from_edge_index(edges, 60)
for name, call in calls.items():
    failed, turn = 0, 0
    while True:
        failing.fail_at(turn)
        try:
            step(call)
        except MemoryError as error:
            assert str(error) == "gatkernels: out of memory", error
            failed += 1
        done = failing.left() >= 0  # there was no such allocation
        failing.fail_at(-1)
        step(call)
        if done:
            break
        turn += 1
    assert failed == turn, (name, failed, turn)
    print(name, failed)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("c++") is None, reason="needs Linux and a compiler"
)
@pytest.mark.skipif(native.cpu_missing is not None, reason="needs the compiled module")
@pytest.mark.parametrize("threads", [1, 2])
def test_an_allocation_that_fails_is_an_error(threads: int, tmp_path: Path) -> None:
    source, library = tmp_path / "failing.cpp", tmp_path / "failing.so"
    source.write_text(FAILING)
    command = ["c++", "-O1", "-shared", "-fPIC", str(source), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(threads=threads)],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    failures = dict(line.split() for line in done.stdout.splitlines())
    assert set(failures) == {"graph", "gat", "features", "gatv2", "dot"}
    assert all(int(count) >= 2 for count in failures.values())
