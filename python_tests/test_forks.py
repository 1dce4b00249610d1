"""Processes forked after OpenMP has run answer, on one thread, with one warning."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, torch
torch.set_num_threads({threads})
from gatkernels import Graph, gat_attention
from gatkernels.backends import threads

edges = torch.randint(0, 500, (2, 20_000), generator=torch.Generator().manual_seed(0))

def step():
    graph = Graph.from_edge_index(edges, 500)
    x = torch.linspace(-1, 1, 500 * 8).view(500, 2, 4).requires_grad_()
    scores = torch.linspace(-1, 1, 1000).view(500, 2)
    out = gat_attention(graph, x, scores, scores)
    out.sum().backward()
    return out.detach(), x.grad

{before}
pid = os.fork()
if pid == 0:
    found = step()
    print(threads.count(), all(map(torch.equal, found, step())), flush=True)
    os._exit(0)
_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def _run(before: str, threads: int) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(before=before, threads=threads)
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )


def test_a_child_forked_after_openmp_has_run_answers_on_one_thread() -> None:
    done = _run("step()", threads=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 True\n"
    assert done.stderr.count("runs on one thread in this process") == 1


def test_a_child_that_wants_one_thread_is_told_nothing() -> None:
    done = _run("step()", threads=1)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 True\n"
    assert "one thread" not in done.stderr
