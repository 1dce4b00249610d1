"""Compiles csrc/ with pybind11 and ninja.

Never imports torch, and the module links no torch library.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CPU_SOURCES = (
    "csrc/bindings/cpu.cpp",
    "csrc/cpu/build_csr.cpp",
    "csrc/cpu/isa_baseline.cpp",
    "csrc/cpu/parallel.cpp",
)
X86_SOURCES = {
    "csrc/cpu/isa_avx2.cpp": "-mavx2 -mfma -mf16c",
    "csrc/cpu/isa_avx512.cpp": (
        "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c -mprefer-vector-width=512"
        " -Wno-maybe-uninitialized -Wno-uninitialized"
    ),
}
FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -Wall -Wextra"


def compiles(compiler: str, flags: list[str]) -> bool:
    """Whether the compiler takes ``flags`` and links a program that uses OpenMP."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        command = [*compiler.split(), str(source), *flags, "-o", str(Path(folder, "probe"))]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            sys.exit(f"gatkernels: no C++ compiler: cannot run '{compiler}' (set CXX)")


def openmp_flags(compiler: str) -> tuple[str, str]:
    if sys.platform == "darwin":
        candidates = [("-Xpreprocessor -fopenmp", "-lomp"), ("-fopenmp", "-fopenmp")]
    else:
        candidates = [("-fopenmp", "-fopenmp")]
    for compile_flag, link_flag in candidates:
        if compiles(compiler, [*compile_flag.split(), *link_flag.split()]):
            return compile_flag, link_flag
    print("gatkernels: WARNING: no OpenMP found, the CPU kernels will run on a single thread")
    return "", ""


def ninja_file(compiler: str, target: Path) -> str:
    includes = f"-I{pybind11.get_include()} -I{sysconfig.get_path('include')}"
    compile_openmp, link_openmp = openmp_flags(compiler)
    shared = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
    sources = dict.fromkeys(CPU_SOURCES, "")
    if platform.machine().lower() in ("x86_64", "amd64"):
        sources |= X86_SOURCES
    lines = [
        f"flags = {FLAGS} {compile_openmp} {includes} {os.environ.get('CXXFLAGS', '')}",
        f"link = {link_openmp} {os.environ.get('LDFLAGS', '')}",
        "rule compile",
        f"  command = {compiler} $flags $isa -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {compiler} {shared} $in -o $out $link",
    ]
    objects = []
    for source, isa in sources.items():
        objects.append(Path(source).stem + ".o")
        lines += [f"build {objects[-1]}: compile {escape(ROOT / source)}", f"  isa = {isa}"]
    lines += [f"build {escape(target)}: link {' '.join(objects)}", f"default {escape(target)}", ""]
    return "\n".join(lines)


def escape(path: Path) -> str:
    return str(path.resolve()).replace("$", "$$").replace(":", "$:").replace(" ", "$ ")


class NinjaBuild(build_ext):
    """Writes build.ninja and runs ninja, which compiles in parallel and only what changed."""

    def build_extension(self, ext: Extension) -> None:
        import ninja

        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CXX", "c++")
        (folder / "build.ninja").write_text(ninja_file(compiler, target))
        program = str(Path(ninja.BIN_DIR, "ninja"))
        subprocess.run([program, "-C", str(folder)], check=True)


setup(
    ext_modules=[Extension("gatkernels._cpu", sources=[])],
    cmdclass={"build_ext": NinjaBuild},
)
