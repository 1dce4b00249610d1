"""How torch ops are registered: the only file that knows torch.library.

Fake tensors never reach a pointer, as kernels are reached through ops wherever anybody looks on: a
compiler, a tracer, a dispatch mode, a transform, a tensor that is more than its memory. A call of
an attention on plain tensors goes to its kernels itself, which takes two thirds of the time on a
small graph; a profiler lists no op then.

An op is a function whose parameters are values or records of :mod:`gatkernels.ops.call`; its
schema, and the code that lays records flat and puts them together again, are made from its
annotations.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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


_PLAIN = frozenset((Tensor, nn.Parameter))


def _unseen(*tensors: Tensor | None) -> bool:
    """Whether a call on these is of no concern to anybody but its kernels."""
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
    ):
        return False
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in _PLAIN or tensor.is_neg() or tensor._is_zerotensor():
            return False
    return True


def _complete(results: Any) -> Any:
    """``results`` as a schema wants them: without None."""
    if not isinstance(results, tuple):
        return results
    return tuple(results[0].new_empty(0) if one is None else one for one in results)


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
        run: The function, on real tensors. Of several results all but the first may be None, which
            the op returns as empty tensors.
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
    direct = ""
    if "inputs" in getattr(kinds[names[0]], "_fields", ()):
        records = [one for one in names[1:] if hasattr(kinds[one], "_fields")]
        given = [f"*{names[0]}.inputs"]
        given += [f"*{one}" for one in records if kinds[one] is not call.Edges]
        given += [one for one in names[1:] if kinds[one] is Tensor]
        direct = f"if unseen({', '.join(given)}): return run({', '.join(names)})"
    source = f"""
def make(op, run, fake, record, unseen, complete):
    def run_flat({flat}): return complete(run({whole}))
    def fake_flat({flat}): return fake({whole})
    def {name}({", ".join(names)}):
        {direct}
        return op({spread})
    return run_flat, fake_flat, {name}
"""
    made: dict[str, Any] = {}
    exec(compile(source, f"<the op {name}>", "exec"), vars(call), made)
    run_flat, fake_flat, caller = made["make"](
        getattr(torch.ops.gatkernels, name), run, fake, tuple.__new__, _unseen, _complete
    )
    for device in devices:
        _library.impl(name, run_flat, device)
    torch.library.register_fake(f"gatkernels::{name}", fake_flat, lib=_library)
    return caller


def exporting_to_onnx() -> bool:
    """Whether the program is for runtimes that have torch's ops alone."""
    traced = torch.compiler.is_compiling() or torch._C._is_tracing()
    return traced and torch.onnx.is_in_onnx_export()
