"""Swap the graph attention layers of an existing model for fused ones, in place."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from gatkernels._dropin import FRAMEWORKS, DropIn, fallbacks


@dataclass(frozen=True)
class Layer:
    """One graph attention layer of a model; ``reason`` says why it stays as it is."""

    name: str
    module: nn.Module = field(repr=False)
    reason: str | None

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

    @property
    def swapped(self) -> list[Layer]:
        """The layers that are fused now."""
        return [layer for layer in self.layers if layer.reason is None]

    @property
    def kept(self) -> list[Layer]:
        """The layers that stay the framework's, each with the reason."""
        return [layer for layer in self.layers if layer.reason is not None]

    def __str__(self) -> str:
        if not self.layers:
            return "gatkernels: no graph attention layer found"
        lines = [f"gatkernels: {len(self.swapped)} of {len(self.layers)} layers swapped"]
        rows = [(layer.name or "(the model)", type(layer.module), layer) for layer in self.layers]
        width = max(len(name) for name, _, _ in rows)
        kind_width = max(len(kind.__name__) for _, kind, _ in rows)
        for name, kind, layer in rows:
            state = "fused" if layer.reason is None else f"stays: {layer.reason}"
            lines.append(f"  {name:{width}}  {kind.__name__:{kind_width}}  {state}")
            for why, count in layer.fallbacks.items():
                lines.append(f"  {'':{width}}  {count} call{'s'[: count > 1]} fell back: {why}")
        return "\n".join(lines)

    __repr__ = __str__


def accelerate(model: nn.Module) -> Report:
    """Make every PyG and DGL GAT and GATv2 layer of ``model`` compute with gatkernels, in place.

    A layer keeps its parameters, hooks, device and training mode; only its class changes, to the
    subclass of the same name in ``gatkernels.pyg`` or ``gatkernels.dgl``. Works on whatever holds
    the layers (``Sequential``, ``HeteroConv``, ``to_hetero``, a DDP-wrapped or compiled model).
    Calls that the fused path cannot do run the framework's own code; the report counts them.

    Returns:
        A report that prints which layers were swapped, and which stay and why.

    Raises:
        TypeError: If ``model`` is not a module.
    """
    table = _drop_ins()
    layers = []
    for name, module in _modules("accelerate", model):
        kind = type(module)
        if isinstance(module, DropIn):
            layers.append(Layer(name, module, module.why_not(module)))
        elif kind in table:
            reason = table[kind].why_not(module)
            if reason is None:
                module.__class__ = table[kind]  # type: ignore[assignment]
                fallbacks(module).clear()
            layers.append(Layer(name, module, reason))
        elif parent := next((c for c in kind.__mro__ if c in table), None):
            layers.append(
                Layer(name, module, f"a subclass of {parent.__name__}, with its own code")
            )
    return Report(tuple(layers))


def restore(model: nn.Module) -> None:
    """Undo :func:`accelerate`: every drop-in layer becomes the framework's own again.

    Also what to do before pickling a model for a place without gatkernels.

    Raises:
        TypeError: If ``model`` is not a module.
    """
    ours = set(_drop_ins().values())
    for _, module in _modules("restore", model):
        if isinstance(module, DropIn) and type(module) in ours:
            module.__class__ = module.original  # type: ignore[assignment]


def _modules(op: str, model: Any) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: 'model' must be a torch.nn.Module, got {type(model).__name__}")
    return list(model.named_modules())


def _drop_ins() -> dict[type[nn.Module], type[DropIn]]:
    """The drop-ins of all frameworks that the user has imported."""
    table: dict[type[nn.Module], type[DropIn]] = {}
    for theirs, ours in FRAMEWORKS.items():
        if sys.modules.get(theirs) is not None:
            table |= importlib.import_module(ours).DROP_INS
    return table
