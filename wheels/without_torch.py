"""The installed module `gatkernels._cpu` without torch: a graph built in NumPy's memory."""

from __future__ import annotations

import importlib.util
import sys
import types
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np


class Tensor:
    """What the module asks of a tensor."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def data_ptr(self) -> int:
        return self.array.ctypes.data


def main() -> int:
    sys.modules["torch"] = types.ModuleType("torch")
    sys.modules["torch"].Tensor = type(
        "Tensor", (Tensor,), {"stride": lambda self, i: 1, "shape": None}
    )
    spec = importlib.util.find_spec("gatkernels")
    assert spec is not None
    folder = Path(spec.submodule_search_locations[0])
    (path,) = (p for s in EXTENSION_SUFFIXES for p in folder.glob(f"_cpu{s}"))
    loading = importlib.util.spec_from_file_location("_cpu", path)
    cpu = importlib.util.module_from_spec(loading)
    loading.loader.exec_module(cpu)

    rng = np.random.default_rng(0)
    src, dst = (rng.integers(0, 50, 400) for _ in range(2))
    sides = []
    for _ in range(2):
        arrays = np.zeros(51, np.int64), np.zeros(400, np.int32), np.zeros(400, np.int32)
        sides.append(arrays)
    csr, csc = (tuple(map(Tensor, side)) for side in sides)
    assert cpu.build_graph(Tensor(dst), Tensor(src), True, 400, 50, 50, False, 2, csr, csc) == -1
    for (rowptr, col, eid), row, other in zip(sides, (dst, src), (src, dst), strict=True):
        order = np.argsort(row, kind="stable")
        assert np.array_equal(eid, order)
        assert np.array_equal(col, other[order])
        assert np.array_equal(np.diff(rowptr), np.bincount(row, minlength=50))
    print(f"{path.name}: {cpu.isa}, OpenMP {cpu.openmp}: a graph of 400 edges is right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
