"""Swap the graph attention layers of an existing model for fused ones, in place."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from gatkernels.layers.dropin import FRAMEWORKS, DropIn, derived, fallbacks, is_derived


@dataclass(frozen=True)
class Layer:
    """One graph attention layer of a model; ``reason`` says why it stays as it is."""

    name: str
    module: nn.Module = field(repr=False)
    reason: str | None

    @property
    def title(self) -> str:
        """Its name in the model, or that it is the model."""
        return self.name or "(the model)"

    @property
    def fallbacks(self) -> dict[str, int]:
        """How many calls since the swap went to the framework's code, by reason."""
        return dict(fallbacks(self.module))


@dataclass(frozen=True)
class Report:
    """What :func:`accelerate` did; print it, again after a run to see which calls fell back.

    Calls inside ``torch.compile`` are not counted.
    """

    layers: tuple[Layer, ...]
    #: Frameworks that are imported but cannot be used, each with the error.
    unusable: tuple[tuple[str, str], ...] = ()
    #: Class names of the frameworks' other graph layers in the model, which have no kernels here.
    others: tuple[str, ...] = ()

    @property
    def swapped(self) -> list[Layer]:
        """The layers that are fused now."""
        return [layer for layer in self.layers if layer.reason is None]

    @property
    def kept(self) -> list[Layer]:
        """The layers that stay the framework's, each with the reason."""
        return [layer for layer in self.layers if layer.reason is not None]

    def __str__(self) -> str:
        lines = ["gatkernels: no layer found that can be swapped"]
        if self.layers:
            lines = [f"gatkernels: {len(self.swapped)} of {len(self.layers)} layers swapped"]
        indent = 4 + max((len(layer.title) for layer in self.layers), default=0)
        for layer, line in zip(self.layers, _lines(self.layers), strict=True):
            lines.append(line)
            for why, count in layer.fallbacks.items():
                lines.append(f"{'':{indent}}{count} call{'s'[: count > 1]} fell back: {why}")
        if self.others:
            counts = Counter(self.others).most_common()
            named = ", ".join(f"{count} {name}" for name, count in counts)
            lines.append(f"  no kernels here for: {named}")
        lines += [f"  layers of {name} were left alone: {error}" for name, error in self.unusable]
        return "\n".join(lines)

    __repr__ = __str__


@dataclass(frozen=True)
class Restored:
    """What :func:`restore` did; print it."""

    layers: tuple[Layer, ...]

    @property
    def restored(self) -> list[Layer]:
        """The layers that are the framework's own again."""
        return [layer for layer in self.layers if layer.reason is None]

    @property
    def kept(self) -> list[Layer]:
        """The layers that stay gatkernels', each with the reason."""
        return [layer for layer in self.layers if layer.reason is not None]

    def __str__(self) -> str:
        if not self.layers:
            return "gatkernels: no layer to restore"
        head = f"gatkernels: {len(self.restored)} of {len(self.layers)} layers restored"
        return "\n".join([head, *_lines(self.layers)])

    __repr__ = __str__


def _lines(layers: tuple[Layer, ...]) -> list[str]:
    """A line for each layer, in columns."""
    rows = [(layer.title, type(layer.module).__name__, _state(layer)) for layer in layers]
    width, kind_width = (max((len(row[i]) for row in rows), default=0) for i in range(2))
    return [f"  {name:{width}}  {kind:{kind_width}}  {state}" for name, kind, state in rows]


def _state(layer: Layer) -> str:
    if layer.reason is not None:
        return f"stays: {layer.reason}"
    module: Any = layer.module
    if not isinstance(module, DropIn):
        return f"{type(module).__module__.partition('.')[0]}'s own"
    now = module.why_not_now(module)
    return "fused" if now is None else f"fused, but for now calls fall back: {now}"


def accelerate(model: nn.Module) -> Report:
    """Make every graph attention layer of PyG and DGL in ``model`` compute by gatkernels, in place.

    A layer keeps its parameters, hooks, device and training mode; only its class changes, to the
    subclass of the same name in ``gatkernels.pyg`` or ``gatkernels.dgl``. Works on whatever holds
    the layers (``Sequential``, ``HeteroConv``, ``to_hetero``, a DDP-wrapped or compiled model).
    Calls that the fused path cannot do run the framework's own code; the report counts them. A
    subclass that changes only how a layer is set up is swapped too, one with its own computation is
    not, nor is a layer whose ``forward`` was replaced.

    Returns:
        A report that prints which layers were swapped, which stay and why, and how many other graph
        layers there are.

    Raises:
        TypeError: If ``model`` is not a module.
    """
    table, unusable = _drop_ins()
    layers, others = [], []
    for name, module in _modules("accelerate", model):
        kind = type(module)
        parent = next((c for c in kind.__mro__ if c in table), None)
        if isinstance(module, DropIn) or parent is not None:
            ours: Any = kind if isinstance(module, DropIn) else _ours(kind, parent, table)
            reason = _why_not(module, ours, parent)
            if reason is None and kind is not ours:
                module.__class__ = ours
                fallbacks(module).clear()
                ours.why_not_now(module)  # a first look, which later ones remember
            layers.append(Layer(name, module, reason))
        elif _is_graph_layer(module):
            others.append(kind.__name__)
    return Report(tuple(layers), tuple(unusable.items()), tuple(others))


def _is_graph_layer(module: nn.Module) -> bool:
    """Whether ``module`` is a layer of PyG or DGL that passes messages."""
    passing = getattr(sys.modules.get("torch_geometric.nn"), "MessagePassing", ())
    kinds = (kind.__module__ for kind in type(module).__mro__)
    return isinstance(module, passing) or any(m.startswith("dgl.nn.pytorch.conv.") for m in kinds)


def _ours(kind: Any, parent: Any, table: dict[Any, Any]) -> Any:
    """The drop-in of ``kind``; None where it has its own code."""
    if kind is parent:
        return table[kind]
    return derived(table[parent], kind) if table[parent].computes_alike(kind) else None


def _why_not(module: Any, ours: Any, parent: Any) -> str | None:
    """Why no call of ``module`` would be fused."""
    if "forward" in module.__dict__:
        return "its forward was replaced"
    if ours is None:
        return f"a subclass of {parent.__name__}, with its own code"
    reason: str | None = ours.why_not(module)
    return reason


def restore(model: nn.Module) -> Restored:
    """Undo :func:`accelerate`: every drop-in layer becomes the framework's own again.

    Also what to do before pickling a model for a place without gatkernels.

    Returns:
        A report that prints which layers were restored, and which stay and why.

    Raises:
        TypeError: If ``model`` is not a module.
    """
    loaded = [sys.modules[name] for name in FRAMEWORKS.values() if name in sys.modules]
    ours = {kind for module in loaded for kind in getattr(module, "DROP_INS", {}).values()}
    layers = []
    for name, module in _modules("restore", model):
        kind = type(module)
        if not isinstance(module, DropIn):
            continue
        reason = None
        if kind in ours or is_derived(kind):
            module.__class__ = module.original  # type: ignore[assignment]
        else:
            reason = f"a class of {kind.__module__}, not swapped by accelerate"
        layers.append(Layer(name, module, reason))
    return Restored(tuple(layers))


def _modules(op: str, model: Any) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: 'model' must be a torch.nn.Module, got {type(model).__name__}")
    return list(model.named_modules())


def _drop_ins() -> tuple[dict[type[nn.Module], type[DropIn]], dict[str, str]]:
    """The drop-ins of all frameworks that the user has imported, and which have none, and why."""
    table: dict[type[nn.Module], type[DropIn]] = {}
    unusable = {}
    for theirs, ours in FRAMEWORKS.items():
        if sys.modules.get(theirs) is not None:
            try:
                table |= importlib.import_module(ours).DROP_INS
            except Exception as error:  # an old release, or another package of that name
                unusable[theirs] = f"{type(error).__name__}: {error}"
    return table, unusable
