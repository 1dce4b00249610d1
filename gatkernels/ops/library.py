"""How torch ops are registered: the only file that knows torch.library.

Kernels are reached only through ops, so that fake tensors never reach a pointer. An op is a
function whose parameters are values or records of :mod:`gatkernels.ops.call`; its schema, and the
code that lays records flat and puts them together again, are made from its annotations.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gatkernels.ops import call

_library = torch.library.Library("gatkernels", "DEF")
_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    Sequence[Tensor]: "Tensor[]",
    float: "float",
    int: "SymInt",
    bool: "bool",
    str: "str",
}


class _Parameter:
    """A parameter of an op as its schema has it, and in Python's words flat and whole."""

    def __init__(self, path: str, kind: Any) -> None:
        name = path.replace(".", "_").removeprefix("call_")
        if kind in _TYPES:
            self.schema, self.flat = [f"{_TYPES[kind]} {name}"], [name]
            self.whole, self.spread = name, path
            return
        fields = [_Parameter(f"{path}.{n}", k) for n, k in typing.get_type_hints(kind).items()]
        self.schema = [one for field in fields for one in field.schema]
        self.flat = [one for field in fields for one in field.flat]
        parts = "".join(f"{field.whole}, " for field in fields)
        self.whole = f"record({kind.__name__}, ({parts}))"  # a third of its constructor's time
        nested = len(self.flat) > len(fields)
        self.spread = ", ".join(field.spread for field in fields) if nested else f"*{path}"


def define(
    run: Callable[..., Any],
    returns: str,
    fake: Callable[..., Any],
    *,
    devices: Sequence[str] = ("CPU", "CUDA"),
    tags: Sequence[torch.Tag] = (),
) -> Any:
    """Registers ``run`` as an op by its name without underscore, and gives what calls that.

    Args:
        run: The function, on real tensors.
        returns: What the schema says of its results.
        fake: The same function on tensors without memory: results of the right shapes.
        devices: The dispatch keys it is for.
        tags: Of the op.
    """
    name = run.__name__.removeprefix("_")
    kinds = typing.get_type_hints(run)
    names = list(inspect.signature(run).parameters)
    parameters = [_Parameter(one, kinds[one]) for one in names]
    schema = ", ".join(one for parameter in parameters for one in parameter.schema)
    _library.define(f"{name}({schema}) -> {returns}", tags=tuple(tags))
    flat = ", ".join(one for parameter in parameters for one in parameter.flat)
    whole = ", ".join(parameter.whole for parameter in parameters)
    spread = ", ".join(parameter.spread for parameter in parameters)
    source = f"""
def make(op, run, fake, record):
    def run_flat({flat}): return run({whole})
    def fake_flat({flat}): return fake({whole})
    def {name}({", ".join(names)}): return op({spread})
    return run_flat, fake_flat, {name}
"""
    made: dict[str, Any] = {}
    exec(compile(source, f"<the op {name}>", "exec"), vars(call), made)
    run_flat, fake_flat, caller = made["make"](
        getattr(torch.ops.gatkernels, name), run, fake, tuple.__new__
    )
    for device in devices:
        _library.impl(name, run_flat, device)
    torch.library.register_fake(f"gatkernels::{name}", fake_flat, lib=_library)
    return caller


def exporting_to_onnx() -> bool:
    """Whether the program is for runtimes that have torch's ops alone."""
    traced = torch.compiler.is_compiling() or torch._C._is_tracing()
    return traced and torch.onnx.is_in_onnx_export()
