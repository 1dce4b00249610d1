"""Load checkpoints of any generation of PyG, of DGL and of dgNN into any graph attention layer.

A layout says which key of a layer's state dict holds which part of the formula. The checkpoint's
layout is recognised by its keys, and the parts go to where the layer keeps them.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gatkernels.nn import GATConv, GATv2Conv


class Part(NamedTuple):
    """What a key holds: a part of the formula, and how to take it from the tensor."""

    role: str
    take: Callable[[Tensor], Tensor] | None = None
    how: str = ""  # said of a tensor that is changed


class Layout(NamedTuple):
    name: str
    formula: str
    marks: frozenset[str]  # keys by which it is known
    keys: dict[str, tuple[Part, ...]]


def _layout(name: str, formula: str, marks: str, **keys: str | tuple[Part, ...]) -> Layout:
    parts = {
        key.replace("__", "."): (Part(value),) if isinstance(value, str) else value
        for key, value in keys.items()
    }
    return Layout(name, formula, frozenset(marks.split()), parts)


_TRANSPOSED = (Part("lin", Tensor.t, "transposed"),)
#: PyG 1.x wrote the score as ``[x_i, x_j] . att``: destinations come first.
_HALVES = (
    Part("att_dst", lambda att: att.chunk(2, -1)[0], "first half"),
    Part("att_src", lambda att: att.chunk(2, -1)[1], "second half"),
)

_PYG_GAT = _layout(
    "PyG >= 2.0", "GAT", "att_src att_dst",
    lin__weight="lin", lin_src__weight="lin_src", lin_dst__weight="lin_dst",
    att_src="att_src", att_dst="att_dst", bias="bias", res__weight="res",
    lin_edge__weight="edge score", att_edge="att_edge",
)  # fmt: skip
_PYG_GATV2 = _layout(
    "PyG", "GATv2", "lin_l.weight lin_r.weight att",
    lin_l__weight="lin_src", lin_r__weight="lin_dst", att="att", bias="bias", res__weight="res",
    lin_l__bias="bias_src", lin_r__bias="bias_dst", lin_edge__weight="edge",
)  # fmt: skip
_DGL_GAT = _layout(
    "DGL", "GAT", "attn_l attn_r",
    fc__weight="lin", fc_src__weight="lin_src", fc_dst__weight="lin_dst",
    attn_l="att_src", attn_r="att_dst", bias="bias", res_fc__weight="res", res_fc__bias="bias",
    fc_edge__weight="edge value", attn_edge="att_edge",
)  # fmt: skip
_DGL_GATV2 = _layout(
    "DGL", "GATv2", "fc_src.weight fc_dst.weight attn",
    fc_src__weight="lin_src", fc_dst__weight="lin_dst", attn="att",
    fc_src__bias="bias_src", fc_dst__bias="bias_dst", res_fc__weight="res", res_fc__bias="bias",
)  # fmt: skip

#: In the order in which they are tried.
LAYOUTS = (
    _layout("PyG 1.0 to 1.5", "GAT", "weight att", weight=_TRANSPOSED, att=_HALVES, bias="bias"),
    _layout(
        "PyG 1.6 and 1.7", "GAT", "lin_l.weight att_l att_r",
        lin_l__weight="lin_src", lin_r__weight="lin_dst", att_l="att_src", att_r="att_dst",
        bias="bias",
    ),
    # dgNN's kernel sums over the columns of a row: attn_l belongs to the row, the destination.
    _layout(
        "dgNN", "GAT", "W attn_l attn_r",
        W=_TRANSPOSED, attn_l="att_dst", attn_r="att_src", bias="bias",
    ),
    _PYG_GAT,
    _PYG_GATV2,
    _DGL_GAT,
    _DGL_GATV2,
)  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """What :func:`load_state_dict` did; print it.

    Attributes:
        renamed: For each entry of the model that did not come from its own name, where it did
            come from, and what was done to it.
    """

    renamed: dict[str, str]
    total: int

    def __str__(self) -> str:
        lines = [f"gatkernels: {self.total} tensors loaded, {len(self.renamed)} renamed"]
        width = max(map(len, self.renamed), default=0)
        return "\n".join(lines + [f"  {k:{width}}  from {v}" for k, v in self.renamed.items()])

    __repr__ = __str__


def load_state_dict(model: nn.Module, state: Mapping[str, Any]) -> Loaded:
    """``model.load_state_dict(state)`` for checkpoints whose GAT layers have other names.

    Every GAT and GATv2 layer of ``model`` (of ``gatkernels.nn``, ``gatkernels.pyg`` and
    ``gatkernels.dgl``, PyG's and DGL's own) takes what the checkpoint holds under its name in the
    layout of PyG 1.0 to 1.5 (``weight``, ``att``), 1.6 and 1.7 (``lin_l``, ``att_l``), 2.0 to 2.4
    (``lin_src``), since 2.5 (``lin``), DGL (``fc``, ``attn_l``) or dgNN (``W``, ``attn_l``). All
    other entries must have the model's names. Either everything is loaded or nothing.

    Args:
        model: The model, or a layer alone.
        state: The state dict, of tensors.

    Returns:
        A report that prints what was renamed.

    Raises:
        TypeError: If ``state`` is not a mapping of names to tensors.
        ValueError: If entries are missing, left over, of another shape (which names the entry and
            both shapes), of another formula, or two where the layer has one.
    """
    _check_types(model, state)
    metadata = getattr(state, "_metadata", None)
    converted: dict[str, Tensor] = OrderedDict(state)
    renamed: dict[str, str] = {}
    problems: list[str] = []
    for name, layer in model.named_modules():
        layout = _layout_of(layer)
        if layout is not None:
            prefix = f"{name}." if name else ""
            given = {k[len(prefix) :]: converted.pop(k) for k in state if k.startswith(prefix)}
            moved = _Move(prefix, layer, layout, given, problems)
            converted.update(moved.entries)
            renamed |= moved.renamed
    problems += _misfits(model.state_dict(), converted, renamed)
    if problems:
        listed = "\n  ".join(dict.fromkeys(problems))
        raise ValueError(
            f"load_state_dict: the checkpoint does not fit, nothing was loaded:\n  {listed}"
        )
    if metadata is not None:
        converted._metadata = metadata  # type: ignore[attr-defined]
    model.load_state_dict(converted)
    return Loaded(renamed, len(converted))


class _Move:
    """The entries of one layer, from the checkpoint's layout to the layer's."""

    def __init__(
        self,
        prefix: str,
        layer: nn.Module,
        target: Layout,
        given: dict[str, Tensor],
        problems: list[str],
    ) -> None:
        self.prefix, self.problems = prefix, problems
        self.entries: dict[str, Tensor] = {}
        self.renamed: dict[str, str] = {}
        self.given = given
        wanted = layer.state_dict()
        source = next((it for it in LAYOUTS if it.marks <= given.keys()), None)
        if source is None or source.formula != target.formula:
            # As it is: what is wrong shows when the names are compared.
            self.entries = {prefix + key: value for key, value in given.items()}
            if source is not None:
                problems.append(
                    f"'{prefix[:-1] or 'model'}' is a {target.formula} layer, but the checkpoint "
                    f"holds {source.formula} ({source.name}: {', '.join(sorted(source.marks))})"
                )
            return
        #: role -> the key it came from, what was done to it, the tensor
        self.parts: dict[str, tuple[str, str, Tensor]] = {}
        for key, value in given.items():
            if key not in source.keys:
                self.entries[prefix + key] = value
            for role, take, how in source.keys.get(key, ()):
                self.parts[role] = (key, how, take(value) if take else value)
        self.used: set[str] = set()
        for key, value in wanted.items():
            if key in target.keys:
                self._fill(key, target.keys[key][0].role, value, source)
        left = {key for key, _, _ in self.parts.values()} - self.used
        problems += [f"'{prefix}{key}' of the checkpoint has no place in the layer" for key in left]
        self._check_shared(layer)

    def _fill(self, key: str, role: str, wanted: Tensor, source: Layout) -> None:
        """Entry ``key`` of the layer, which holds ``role``."""
        found = self.parts.get(role)
        if found is None and role in ("lin_src", "lin_dst"):
            found = self.parts.get("lin")
        if found is None and role == "lin" and "lin_src" in self.parts:
            found = self.parts["lin_src"]
            other = self.parts.get("lin_dst", found)
            self.used.add(other[0])
            if not _equal(found[2], other[2]):
                self.problems.append(
                    f"'{self.prefix}{found[0]}' and '{self.prefix}{other[0]}' differ, but the "
                    f"layer has '{self.prefix}{key}' for both"
                )
        if found is None and role == "bias" and source is _DGL_GATV2:
            # DGL's formula has no bias after the sum.
            self.entries[self.prefix + key] = torch.zeros_like(wanted)
            self.renamed[self.prefix + key] = "nothing: zeros, DGL's layer has none"
            return
        if found is None:
            return
        name, how, value = found
        self.used.add(name)
        self.entries[self.prefix + key] = value
        if how or name != key:
            self.renamed[self.prefix + key] = f"{self.prefix}{name}" + (f", {how}" if how else "")

    def _check_shared(self, layer: nn.Module) -> None:
        """One parameter under two names can only take what is equal."""
        names: dict[int, str] = {}
        for key, parameter in layer.named_parameters(remove_duplicate=False):
            first = names.setdefault(id(parameter), key)
            pair = [self.entries.get(self.prefix + it) for it in (first, key)]
            if pair[0] is not None and pair[1] is not None and not _equal(pair[0], pair[1]):
                self.problems.append(
                    f"'{self.prefix}{first}' and '{self.prefix}{key}' are one parameter of the "
                    "layer, but the checkpoint's differ"
                )


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and torch.equal(a, b.to(a.device, a.dtype)))


def _layout_of(layer: nn.Module) -> Layout | None:
    """How a layer names its parts; None if it is no graph attention layer."""
    kinds: list[tuple[type[nn.Module], Layout]] = [(GATConv, _PYG_GAT), (GATv2Conv, _PYG_GATV2)]
    pyg, dgl = sys.modules.get("torch_geometric.nn"), sys.modules.get("dgl.nn.pytorch")
    if pyg is not None:
        kinds += [(pyg.GATConv, _PYG_GAT), (pyg.GATv2Conv, _PYG_GATV2)]
    if dgl is not None:
        kinds += [(dgl.GATConv, _DGL_GAT), (dgl.EdgeGATConv, _DGL_GAT), (dgl.GATv2Conv, _DGL_GATV2)]
    return next((layout for kind, layout in kinds if isinstance(layer, kind)), None)


def _misfits(
    wanted: Mapping[str, Any], given: Mapping[str, Tensor], renamed: dict[str, str]
) -> list[str]:
    """What of the entries is missing, left over or of another shape."""
    problems = []
    for key, value in wanted.items():
        if key not in given:
            if not key.endswith("num_batches_tracked"):  # torch itself fills it in
                problems.append(f"'{key}' {_shape(value)} of the model is not in the checkpoint")
        elif isinstance(value, Tensor) and not is_lazy(value) and value.shape != given[key].shape:
            where = f" ({renamed[key]})" if key in renamed else ""
            problems.append(
                f"'{key}' has shape {_shape(value)} in the model, "
                f"{_shape(given[key])} in the checkpoint{where}"
            )
    left = [key for key in given if key not in wanted]
    return problems + [
        f"'{key}' {_shape(given[key])} of the checkpoint is not in the model" for key in left
    ]


def _shape(value: Any) -> str:
    if is_lazy(value):
        return "(not yet known)"
    return str(tuple(value.shape)) if isinstance(value, Tensor) else ""


def _check_types(model: Any, state: Any) -> None:
    op = "load_state_dict"
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: 'model' must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(state, Mapping):
        raise TypeError(f"{op}: 'state' must be a state dict, got {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(value, Tensor) and not str(key).endswith("_extra_state"):
            raise TypeError(
                f"{op}: 'state' must map names to tensors, but '{key}' is a "
                f"{type(value).__name__}; give the entry of the checkpoint that is the state dict"
            )
