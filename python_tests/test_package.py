"""The package as a user gets it: an sdist that builds, one OpenMP runtime, calls from threads."""

from __future__ import annotations

import ast
import inspect
import os
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


def test_type_checkers_read_what_there_is() -> None:
    """The stub has all public names, and the operators' parameters in their order."""
    stub = ast.parse((ROOT / "gatkernels" / "__init__.pyi").read_text())
    named = {
        name.asname for node in stub.body if isinstance(node, ast.ImportFrom) for name in node.names
    }
    functions = [node for node in stub.body if isinstance(node, ast.FunctionDef)]
    assert named | {f.name for f in functions} | {"__version__"} >= set(gatkernels.__all__)
    options = {
        node.name: {part.target.id for part in node.body}  # type: ignore[attr-defined]
        for node in stub.body
        if isinstance(node, ast.ClassDef)
    }
    for function in functions:
        real = inspect.signature(getattr(gatkernels, function.name)).parameters
        keywords = options["_DotOptions" if function.name == "dot_attention" else "_Options"]
        positional = [name for name, p in real.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert [arg.arg for arg in function.args.args] == positional
        assert {"return_attention", *keywords} == set(real) - set(positional)


def test_a_typed_user_sees_no_any(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    assert (ROOT / "gatkernels" / "py.typed").is_file()
    script = tmp_path / "user.py"
    script.write_text(
        "from torch import Tensor\n"
        "from gatkernels import Graph, dot_attention, gat_attention, gatv2_attention\n"
        "def use(graph: Graph, x: Tensor, s: Tensor, sure: bool) -> Tensor:\n"
        "    out, alpha = gat_attention(graph, x, s, dropout=0.1, return_attention=True)\n"
        "    reveal_type(alpha)\n"
        "    reveal_type(gat_attention(graph, x, s))\n"
        "    reveal_type(gatv2_attention(graph, x, x, s))\n"
        "    reveal_type(dot_attention(graph, x, x, x))\n"
        "    reveal_type(dot_attention(graph, x, x, x, x, x, return_attention=True)[2])\n"
        "    gat_attention(graph, x, s, return_attention=sure)\n"
        "    return out\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(script)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)}, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    revealed = re.findall(r'Revealed type is "([\w.]+)"', done.stdout)
    assert revealed == ["torch._tensor.Tensor"] * 5, done.stdout + done.stderr
    assert "Success" in done.stdout
