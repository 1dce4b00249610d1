"""What was made from a tensor, remembered for as long as the tensor's memory lives unchanged.

The memory is what is watched, by a weak reference to its storage: a weak reference to the tensor
itself would forbid ``torch.utils.swap_tensors``.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Hashable
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import ref

import torch
from torch import Tensor

Value = TypeVar("Value")

#: Values kept per storage, whatever their size; more where what they were made from is together
#: smaller than so many times the storage, as where many graphs are views of one.
FEW = 4
MANY = 256  # the most
SAMPLES = 16  # ids that are compared
_INTEGERS: dict[torch.dtype, Any] = {
    torch.int32: ctypes.POINTER(ctypes.c_int32),
    torch.int64: ctypes.POINTER(ctypes.c_int64),
}


class _Part:
    """A tensor as it was: torch's count of its changes, its place in memory, and some values."""

    __slots__ = ("address", "ids", "places", "sampled", "shape", "storage", "stride", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.storage = ref(tensor.untyped_storage())
        self.version, self.address = tensor._version, tensor.data_ptr()
        self.shape, self.stride = tensor.shape, tensor.stride()
        self.ids = _ids(tensor)
        if self.ids is not None:
            # of dense memory, whatever its strides; some of it may not be the tensor's
            length = 1 + sum(
                (n - 1) * step for n, step in zip(self.shape, self.stride, strict=True)
            )
            self.places = slice(0, length, max(1, length // SAMPLES))
            self.sampled = self._sample()

    def _sample(self) -> Any:
        """A change of most ids at once, which torch cannot count, reaches one of them."""
        return self.ids[self.places]

    def is_still(self, tensor: Tensor) -> bool:
        return (
            tensor.untyped_storage() is self.storage()
            and tensor._version == self.version
            and tensor.data_ptr() == self.address
            and tensor.shape == self.shape
            and tensor.stride() == self.stride
            and (self.ids is None or self._sample() == self.sampled)
        )


def _ids(tensor: Tensor) -> Any:
    """The memory of a dense index tensor on the CPU, without holding on to it; else None."""
    kind = _INTEGERS.get(tensor.dtype)
    if kind is None or tensor.device.type != "cpu" or not tensor.numel():
        return None
    address = tensor.data_ptr()
    return None if address == 0 else ctypes.cast(address, kind)


class _Entry(NamedTuple):
    version: int
    parts: tuple[_Part, ...]
    size: int  # bytes of the first part
    value: Any


class Memo(Generic[Value]):
    """Values by the tensor they were made from and a key; the last few of each storage."""

    def __init__(self) -> None:
        #: By the storage's id: a weak reference to it, and its entries.
        self._slots: dict[int, tuple[Any, dict[Any, _Entry]]] = {}
        self._lock = threading.Lock()

    def find(self, given: Tensor, parts: tuple[Tensor, ...], key: Hashable) -> Value | None:
        """What was kept for ``given``, whose contents are those of ``parts``; None if changed."""
        slot = self._slots.get(id(parts[0].untyped_storage()))
        entry = None if slot is None else slot[1].get((id(given), key))
        if entry is None or entry.version != given._version:
            return None
        for then, now in zip(entry.parts, parts, strict=True):
            if not then.is_still(now):
                return None
        found: Value = entry.value
        return found

    def keep(self, given: Tensor, parts: tuple[Tensor, ...], key: Hashable, value: Value) -> None:
        """Remember ``value``, which must not hold on to the memory of ``parts``."""
        storage = parts[0].untyped_storage()
        slot = self._slots.get(id(storage))
        if slot is None or slot[0]() is not storage:
            slot = self._slots[id(storage)] = (self._watch(storage), {})
        entry = _Entry(given._version, (*map(_Part, parts),), parts[0].nbytes, value)
        room = FEW * storage.nbytes()
        with self._lock:
            entries = slot[1]
            entries.pop((id(given), key), None)
            entries[id(given), key] = entry
            while len(entries) > MANY or (
                len(entries) > FEW and sum(e.size for e in entries.values()) >= room
            ):
                del entries[next(iter(entries))]

    def _watch(self, storage: Any) -> Any:
        """A weak reference that takes the storage's entries with it."""
        slots, place = self._slots, id(storage)

        def forget(dead: Any) -> None:
            if place in slots and slots[place][0] is dead:
                del slots[place]

        return ref(storage, forget)


def sparse_parts(matrix: Tensor) -> tuple[Tensor, ...]:
    """The index tensors of a sparse COO, CSR or CSC matrix; its own version counts its values."""
    if matrix.layout == torch.sparse_coo:
        return (matrix._indices(),)
    if matrix.layout == torch.sparse_csr:
        return matrix.crow_indices(), matrix.col_indices()
    return matrix.ccol_indices(), matrix.row_indices()


def watchable(given: Tensor) -> bool:
    """Whether changes of ``given`` can be noticed: neither traced nor an inference tensor."""
    traced = torch.compiler.is_compiling() or torch._C._is_tracing()
    return not (traced or given.is_inference())
