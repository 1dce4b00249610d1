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

#: A parallel region of torch's.
TORCH_ALONE = "torch.ones(2_000_000).add_(1.0).exp_()"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def _run(before: str, threads: int) -> tuple[str, str]:
    """What the child prints, and its warnings."""
    program = PROGRAM.format(before=before, threads=threads)
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    "before",
    [
        "step()",
        pytest.param(
            TORCH_ALONE,
            marks=pytest.mark.skipif(
                not os.path.isdir("/proc/self/task"), reason="nobody counts torch's threads here"
            ),
        ),
    ],
    ids=["kernels", "torch"],
)
def test_a_child_forked_after_openmp_has_run_answers_on_one_thread(before: str) -> None:
    printed, warned = _run(before, threads=2)
    assert printed == "1 True\n"
    assert warned.count("runs on one thread in this process") == 1


@pytest.mark.parametrize(("before", "threads"), [("", 2), ("step()", 1)])
def test_a_child_that_has_lost_no_thread_keeps_its_own(before: str, threads: int) -> None:
    printed, warned = _run(before, threads)
    assert printed == f"{threads} True\n"
    assert "one thread" not in warned
