"""Compiles csrc/ with pybind11 and ninja.

Never imports torch, and the modules link no torch library. The CUDA module is built where nvcc and
a GPU are found (GATKERNELS_CUDA=auto), never (0) or always (1); it needs no GPU to build.
GATKERNELS_CUDA_ARCHS lists the architectures; auto, it builds for them without a GPU, too.
"""

from __future__ import annotations

import functools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
BINDINGS = "-Os"  # pybind11's templates take longest to compile, and have no loops
CPU_BINDINGS = "csrc/bindings/cpu.cpp"
CPU_SOURCES = ("csrc/cpu/build_csr.cpp", "csrc/cpu/parallel.cpp")
#: One object per dtype each.
ISAS = {"csrc/cpu/isa_baseline.cpp": ""}
X86_ISAS = {
    "csrc/cpu/isa_avx2.cpp": "-mavx2 -mfma -mf16c",
    "csrc/cpu/isa_avx512.cpp": (
        "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c -mprefer-vector-width=512"
        " -Wno-maybe-uninitialized -Wno-uninitialized"
    ),
}
# Vectors are written out, so that more optimisation is much more code and little speed: it is for
# float32, and on x86 not for the baseline, which few processors run beside those.
OPTIMISED = {"float64": "-O2", "bfloat16": "-O2", "float16": "-O2"}
X86_BASELINE = {"float32": "-O2 -fno-tree-vectorize", "bfloat16": "-Os", "float16": "-Os"}
CUDA_SOURCES = (
    "csrc/cuda/backward_prologue.cu",
    "csrc/cuda/dot_backward.cu",
    "csrc/cuda/dot_forward.cu",
    "csrc/cuda/merge_forward.cu",
    "csrc/cuda/node_scores.cu",
    "csrc/cuda/rowwise_backward.cu",
    "csrc/cuda/rowwise_forward.cu",
    "csrc/cuda/separable_backward.cu",
    "csrc/cuda/separable_forward.cu",
)
#: The storage type that an object is compiled for; the first two are dtypes of sums as well.
TYPES = {
    "float32": "-DGK_TYPE=float -DGK_TYPE_OF_SUMS",
    "float64": "-DGK_TYPE=double -DGK_TYPE_OF_SUMS",
    "bfloat16": "-DGK_TYPE=gatkernels::BFloat16",
    "float16": "-DGK_TYPE=gatkernels::Half",
}
CUDA_ARCHS = "80 90 100"  # or what GATKERNELS_CUDA_ARCHS lists
NVCC_FLAGS = "-std=c++17 -O3 --expt-relaxed-constexpr -Xcompiler -fPIC,-fvisibility=hidden"
# Functions begin at a line of the cache: where the linker puts a loop changes its time by a tenth.
FLAGS = (
    "-std=c++17 -O3 -fPIC -fvisibility=hidden -falign-functions=64 -fno-math-errno"
    " -fno-trapping-math -Wall -Wextra"
)


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


@functools.cache
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


def link_rule(compiler: str, flags: str) -> list[str]:
    shared = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
    command = f"  command = {compiler} {shared} $in -o $out {flags}"
    return ["rule link", command, "  description = linking"]


def compile_rule(name: str, command: str) -> list[str]:
    return [
        f"rule {name}",
        f"  command = {command} -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compiling $out",
    ]


def cpu_flags(compiler: str) -> tuple[str, str]:
    """Of the compiler and of the linker."""
    compile_openmp, link_openmp = openmp_flags(compiler)
    return f"{FLAGS} {compile_openmp} {os.environ.get('CXXFLAGS', '')}", link_openmp


def cpu_kernels_ninja(compiler: str) -> tuple[str, list[str]]:
    """Build lines of what knows nothing of Python, so that all versions of it share the objects;
    and the objects' names."""
    lines = compile_rule("compile", f"{compiler} {cpu_flags(compiler)[0]} $options")
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    objects = {f"{Path(source).stem}.o": (source, "") for source in CPU_SOURCES}
    for source, isa in {**(X86_ISAS if x86 else {}), **ISAS}.items():
        for dtype, options in TYPES.items():
            optimised = OPTIMISED.get(dtype, "")
            if x86 and not isa:
                optimised = X86_BASELINE.get(dtype, optimised)
            objects[f"{Path(source).stem}.{dtype}.o"] = source, f"{isa} {optimised} {options}"
    for name, (source, options) in objects.items():
        lines += [f"build {name}: compile {escape(ROOT / source)}", f"  options = {options}"]
    return "\n".join([*lines, ""]), list(objects)


def cpu_ninja(compiler: str, kernels: list[Path], target: Path) -> str:
    """The bindings of one Python's version, linked with the kernels' objects."""
    flags, link_openmp = cpu_flags(compiler)
    lines = [
        *compile_rule("compile", f"{compiler} {flags} {includes()} {BINDINGS}"),
        *link_rule(compiler, f"{link_openmp} {os.environ.get('LDFLAGS', '')}"),
        f"build bindings.o: compile {escape(ROOT / CPU_BINDINGS)}",
        f"build {escape(target)}: link bindings.o {' '.join(map(escape, kernels))}",
        f"default {escape(target)}",
        "",
    ]
    return "\n".join(lines)


def cuda_objects() -> tuple[list[str], str]:
    """Build lines of the kernels for each dtype and of their bindings, by the rules ``kernel`` and
    ``compile``; and the objects' names."""
    lines, names = [], ["bindings.o"]
    for source in CUDA_SOURCES:
        for dtype, flags in TYPES.items():
            names.append(f"{Path(source).stem}.{dtype}.o")
            lines += [f"build {names[-1]}: kernel {escape(ROOT / source)}", f"  type = {flags}"]
    lines.append(f"build bindings.o: compile {escape(ROOT / 'csrc/bindings/cuda.cpp')}")
    return lines, " ".join(names)


def cuda_ninja(compiler: str, nvcc: Path, target: Path) -> str:
    home = toolkit(nvcc)
    include = f"{argument(f'-I{home}/include')} {includes()}"
    flags = f"{FLAGS} {include} {os.environ.get('CXXFLAGS', '')}"
    kernel_flags = f"{NVCC_FLAGS} -ccbin {compiler.split()[0]} {gpu_flags(nvcc)}"
    libraries = [home / "lib64", home / "targets" / f"{platform.machine()}-linux" / "lib"]
    found = next((argument(f"-L{p}") for p in libraries if (p / "libcudart_static.a").exists()), "")
    objects, names = cuda_objects()
    lines = [
        *compile_rule("kernel", f"{argument(nvcc)} {kernel_flags} $type"),
        *compile_rule("compile", f"{compiler} {flags} {BINDINGS}"),
        *link_rule(
            compiler,
            f"{found} -lcudart_static -Wl,--exclude-libs,ALL -ldl -lrt -lpthread "
            f"{os.environ.get('LDFLAGS', '')}",
        ),
        *objects,
        f"build {escape(target)}: link {names}",
        f"default {escape(target)}",
        "",
    ]
    return "\n".join(lines)


def toolkit(nvcc: Path) -> Path:
    """Where nvcc, which may be a script, has its headers and libraries."""
    command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    top = next(line for line in told.splitlines() if line.startswith("#$ TOP="))
    return Path(top.removeprefix("#$ TOP=")).resolve()


def gpu_flags(nvcc: Path) -> str:
    """Machine code for every architecture, and PTX of the newest for GPUs to come."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    wanted = os.environ.get("GATKERNELS_CUDA_ARCHS", CUDA_ARCHS).split()
    known = sorted((a for a in wanted if f"sm_{a}" in listed.stdout.split()), key=int)
    if not known:
        sys.exit(f"gatkernels: {nvcc} knows none of the architectures {' '.join(wanted)}")
    flags = [f"-gencode arch=compute_{arch},code=sm_{arch}" for arch in known]
    return " ".join([*flags, f"-gencode arch=compute_{known[-1]},code=compute_{known[-1]}"])


def find_nvcc() -> Path | None:
    """nvcc where CUDA kernels are to be built: GATKERNELS_CUDA is auto, 0 or 1."""
    wanted = os.environ.get("GATKERNELS_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"gatkernels: GATKERNELS_CUDA must be auto, 0 or 1, got '{wanted}'")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    on_path = shutil.which("nvcc")
    places = [Path(home, "bin", "nvcc")] if home else []
    places += [Path(on_path)] if on_path else []
    places.append(Path("/usr/local/cuda/bin/nvcc"))
    found = next((place for place in places if place.exists()), None)
    if wanted == "auto":
        return found if "GATKERNELS_CUDA_ARCHS" in os.environ or has_gpu() else None
    if found is None:
        sys.exit(
            "gatkernels: GATKERNELS_CUDA=1, but there is no nvcc: set CUDA_HOME to the CUDA "
            "toolkit, or put nvcc on PATH"
        )
    return found


def has_gpu() -> bool:
    """Whether the driver lists an NVIDIA GPU."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return any(Path("/dev").glob("nvidia[0-9]*"))
    return "GPU 0" in listed.stdout


def includes() -> str:
    folders = pybind11.get_include(), sysconfig.get_path("include")
    return " ".join(argument(f"-I{folder}") for folder in folders)


def argument(text: object) -> str:
    """One word of a command in build.ninja."""
    return shlex.quote(str(text)).replace("$", "$$")


def escape(path: Path) -> str:
    return str(path.resolve()).replace("$", "$$").replace(":", "$:").replace(" ", "$ ")


def ninja_command() -> str:
    import ninja

    return str(Path(ninja.BIN_DIR, "ninja"))


def run_ninja(folder: Path, content: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text(content)
    subprocess.run([ninja_command()], cwd=folder, check=True)


class NinjaBuild(build_ext):
    """Writes build.ninja and runs ninja, which compiles in parallel and only what changed."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CXX", "c++")
        if ext.name == "gatkernels._cuda":
            nvcc = find_nvcc()
            if nvcc is None:
                sys.exit("gatkernels: nvcc or the GPU that it was to compile for went away")
            content = cuda_ninja(compiler, nvcc, target)
        else:
            content, names = cpu_kernels_ninja(compiler)
            kernels = self.objects_folder().parent / f"kernels.{self.plat_name}"
            run_ninja(kernels, content)
            content = cpu_ninja(compiler, [kernels / name for name in names], target)
        run_ninja(self.objects_folder() / ext.name, content)

    def objects_folder(self) -> Path:
        """Where objects are; editable installations keep them, as ``build_ext --inplace`` does."""
        folder = Path(self.build_temp)
        if getattr(self, "editable_mode", False):
            folder = ROOT / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}"
        return folder.resolve()


if __name__ == "__main__":
    names = ["gatkernels._cpu"] + (["gatkernels._cuda"] if find_nvcc() else [])
    setup(
        ext_modules=[Extension(name, sources=[]) for name in names],
        cmdclass={"build_ext": NinjaBuild},
    )
