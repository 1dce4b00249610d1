"""The package as a user gets it: an sdist that builds, one OpenMP runtime, calls from threads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import gatkernels
from gatkernels.backends import native

ROOT = Path(__file__).parents[1]


def python(code: str) -> str:
    """What a new interpreter prints; it may take a minute."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_version_is_that_of_the_distribution() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert 'version = { attr = "gatkernels.__version__" }' in text
    assert re.fullmatch(r"\d+\.\d+\.\d+", gatkernels.__version__)


@pytest.mark.skipif(sys.platform != "linux", reason="libraries are listed in /proc")
@pytest.mark.parametrize("order", ["gatkernels, torch", "torch, gatkernels"])
def test_one_openmp_runtime(order: str) -> None:
    if reason := native.cpu_missing:
        pytest.skip(reason)
    code = f"""
import re, {order}
torch.set_num_threads(2)
conv = gatkernels.nn.GATConv(16, 8, 4, backend="cpu")
conv(torch.randn(3000, 16), torch.randint(3000, (2, 20000))).sum().backward()
maps = open("/proc/self/maps").read()
print(len(set(re.findall(r"/\\S*lib(?:gomp|iomp|omp)[\\w.-]*", maps))))
"""
    assert python(code) == "1"


def test_first_calls_from_many_threads() -> None:
    """Nobody waits for another's lookup, and all get what one thread gets."""
    if reason := native.cpu_missing:
        pytest.skip(reason)
    code = """
import sys, threading, torch
sys.setswitchinterval(1e-6)
from gatkernels import Graph, gat_attention
from gatkernels.nn import GATConv
torch.set_num_threads(1)
edges = torch.randint(50, (2, 400))
x, score = torch.randn(50, 4, 8), torch.randn(50, 4)
conv, flat = GATConv(32, 8, 4), torch.randn(50, 32)
barrier, found = threading.Barrier(8), [None] * 8
def work(i):
    barrier.wait()
    graph = Graph.from_edge_index(edges, 50)
    with torch.no_grad():
        for _ in range(20):
            found[i] = gat_attention(graph, x, score, score), conv(flat, edges)
threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(8)]
[t.start() for t in threads]
[t.join(40) for t in threads]
print(all(f and all(map(torch.equal, f, found[0])) for f in found))
"""
    assert python(code) == "True"


def test_an_sdist_has_what_a_build_needs(tmp_path: Path) -> None:
    """Every file of the sources that are compiled or imported, and no compiled module."""
    if not (ROOT / ".git").exists():
        pytest.skip("which files belong to the sources is git's to say")
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(tmp_path)]
    egg_info = ["egg_info", "--egg-base", str(tmp_path)]
    subprocess.run([*command[:3], *egg_info, *command[3:]], cwd=ROOT, check=True, text=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    listed = subprocess.run(["tar", "tzf", archive], capture_output=True, text=True, check=True)
    held = {name.partition("/")[2] for name in listed.stdout.splitlines()}
    tracked = subprocess.run(
        ["git", "ls-files", "csrc", "gatkernels", "setup.py", "pyproject.toml", "README.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert set(tracked) - held == set()
    assert not [name for name in held if name.endswith(".so")]
