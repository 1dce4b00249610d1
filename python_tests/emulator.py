"""Builds of the CUDA kernels for tests: as C++ against the emulator in simt/, and by nvcc."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import subprocess
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).parent
COMPILER = os.environ.get("CXX", "c++")
#: "address" under an address sanitizer, whose library must be preloaded (see the Makefile).
SANITIZE = os.environ.get("GATKERNELS_SANITIZE", "")


def from_file(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def setup_script() -> Any:
    """setup.py, which names the sources and knows how to build them."""
    return from_file("gatkernels_setup", HERE.parent / "setup.py")


@functools.cache
def module() -> Any:
    """The emulated module, compiled anew where a source is newer."""
    setup = setup_script()
    flags = "-std=c++17 -O1 -fPIC -fvisibility=hidden -Wall -Wextra -DGK_SIMT"
    sanitize = ""
    if SANITIZE:
        sanitize = f"-fsanitize={SANITIZE}"
        flags += f" -g1 -fno-omit-frame-pointer {sanitize}"
    include = f"{setup.argument(f'-I{HERE}/simt')} {setup.includes()}"
    command = f"{COMPILER} {flags} {include} $type -x c++"
    rules = [*setup.compile_rule("kernel", command), *setup.compile_rule("compile", command)]
    objects, names = setup.cuda_objects()
    rules += [*setup.link_rule(COMPILER, sanitize), *objects, f"build _cuda.so: link {names}", ""]
    folder = HERE.parent / "build" / f"simt{SANITIZE}"
    folder.mkdir(parents=True, exist_ok=True)
    with mock.patch.dict(os.environ), (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other workers of the same test run wait
        os.environ.pop("LD_PRELOAD", None)  # the compiler itself runs without the sanitizer
        setup.run_ninja(folder, "\n".join(rules))
    return from_file("_cuda", folder / "_cuda.so")


def build_cuda(folder: Path, nvcc: Path, arch: str) -> str:
    """Compiles the real module for one architecture; what the assembler reports of each kernel."""
    setup = setup_script()
    settings = {"GATKERNELS_CUDA_ARCHS": arch, "NVCC_APPEND_FLAGS": "-Xptxas -v"}
    with mock.patch.dict(os.environ, settings):
        (folder / "build.ninja").write_text(setup.cuda_ninja(COMPILER, nvcc, folder / "_cuda.so"))
        command = [setup.ninja_command(), "-v"]
        made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    return made.stdout
