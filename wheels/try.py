"""Use a wheel as a user does: `python wheels/try.py dist/*.whl`.

A new environment, and a PATH on which there is no compiler: the wheel is installed with torch, then
the package is imported before and after torch, `gatkernels verify` passes, the README's snippets
run, and one OpenMP runtime is loaded. --torch names torch's requirement; `--torch none` where no
torch can be had tries the compiled module alone, on NumPy's memory.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
ORDERS = ("import gatkernels, torch", "import torch, gatkernels")
#: Prints the OpenMP runtimes of the process, after a call on two threads.
RUNTIMES = """
import re, torch, gatkernels
torch.set_num_threads(2)
conv = gatkernels.nn.GATConv(16, 8, 4, backend="cpu")
conv(torch.randn(3000, 16), torch.randint(3000, (2, 20000))).sum().backward()
maps = open("/proc/self/maps").read()
print(sorted(set(re.findall(r"/\\S*lib(?:gomp|iomp|omp)[\\w.-]*", maps))))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", default="torch", help="requirement of torch, or none")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the wheel's tag")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        python = environment(Path(folder), args.python)
        if args.torch == "none":
            run(python, "-m", "pip", "install", "--quiet", "numpy")
            run(python, "-m", "pip", "install", "--quiet", "--no-deps", args.wheel.resolve())
            run(python, HERE / "without_torch.py")
            return 0
        run(python, "-m", "pip", "install", "--quiet", args.torch, args.wheel.resolve())
        for order in ORDERS:
            run(python, "-c", order)
        run(python, "-m", "gatkernels", "info")
        run(python, "-m", "gatkernels", "verify")
        for snippet in snippets():
            run(python, "-c", snippet)
        if sys.platform == "linux":
            runtimes = run(python, "-c", RUNTIMES, capture=True).strip()
            print(f"OpenMP runtimes: {runtimes}")
            return int(runtimes.count("/") == 0 or runtimes.count("'") != 2)
    return 0


def environment(folder: Path, interpreter: str) -> Path:
    """A new virtual environment's Python."""
    if interpreter == sys.executable:
        venv.create(folder / "venv", with_pip=True)
    else:
        subprocess.run([interpreter, "-m", "venv", str(folder / "venv")], check=True)
    return folder / "venv" / "bin" / "python"


def run(python: Path, *arguments: object, capture: bool = False) -> str:
    """A command of the environment, from an empty folder, where no compiler can be found."""
    env = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")}
    env |= {"PATH": str(python.parent), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [str(python), *map(str, arguments)],
        env=env,
        cwd=python.parents[2],
        check=True,
        text=True,
        stdout=subprocess.PIPE if capture else None,
    )
    return done.stdout or ""


def snippets() -> list[str]:
    """The README's, but for those about packages that are not there."""
    text = (HERE.parent / "README.md").read_text()
    found = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    foreign = r"torch_geometric|gatkernels\.pyg|\bdgl\b"
    return [snippet for snippet in found if not re.search(foreign, snippet)]


if __name__ == "__main__":
    sys.exit(main())
