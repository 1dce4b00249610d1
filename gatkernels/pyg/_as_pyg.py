"""Whether a layer's message passing is PyG's own at the moment, as the fused path takes it."""

from __future__ import annotations

import operator
import os
import sys
from typing import Any

import torch
from torch.autograd import forward_ad
from torch_geometric.nn import MessagePassing, conv
from torch_geometric.nn.aggr import SumAggregation

from gatkernels.layers.dropin import own, runs

#: What message passing calls of a layer's class, in PyG's source.
METHODS: tuple[str, ...]
METHODS = (
    "edge_update",
    "message",
    "message_and_aggregate",
    "aggregate",
    "update",
    "_check_input",
    "_set_size",
    "_lift",
    "_index_select",
    "_index_select_safe",
)
METHODS = tuple(name for name in METHODS if hasattr(MessagePassing, name))
#: Other methods that the layers call.
MORE_METHODS = {conv.HGTConv: ("_cat", "_construct_src_node_feat")}
#: What PyG also generates code for, a function for each class.
GENERATED = ("propagate", "edge_updater")
HOOKS = tuple(
    f"_{step}_forward_{kind}"
    for step in ("propagate", "edge_update", "message", "aggregate", "message_and_aggregate")
    for kind in ("pre_hooks", "hooks")
)
#: Functions that the layers call by these names of their modules.
_OF_GAT = ("softmax", "add_self_loops", "remove_self_loops", "F.leaky_relu", "F.dropout")
FUNCTIONS = {
    conv.GATConv: _OF_GAT,
    conv.GATv2Conv: _OF_GAT,
    conv.TransformerConv: ("softmax", "F.dropout"),
    conv.HGTConv: ("softmax", "construct_bipartite_edge_index"),
}

_names_of = {cls: METHODS + MORE_METHODS.get(cls, ()) for cls in FUNCTIONS}
# many attributes at once: a call of a layer cannot wait for a loop in Python
_methods = {cls: operator.attrgetter(*names) for cls, names in _names_of.items()}
_generated = operator.attrgetter(*GENERATED)
_hooks = operator.attrgetter(*HOOKS)
_functions = {cls: operator.attrgetter(*names) for cls, names in FUNCTIONS.items()}
_names = frozenset((*METHODS, *GENERATED, *(n for names in MORE_METHODS.values() for n in names)))

_forwards = {cls: own(cls, "forward") for cls in FUNCTIONS}
_own_methods = {cls: tuple(own(cls, n) for n in names) for cls, names in _names_of.items()}
_modules = {cls: sys.modules[cls.__module__] for cls in _forwards}
_own_functions = {
    cls: tuple(f if f.__module__.startswith("torch") else object() for f in _functions[cls](module))
    for cls, module in _modules.items()
}
_own_generated = {own(MessagePassing, name) for name in GENERATED}
_seen = list(_own_generated)  # the same, which torch.compile can follow
_aggregation = (own(SumAggregation, "forward"), own(SumAggregation, "reduce"))
_families = {cls: cls for cls in _forwards}


def family(kind: type) -> Any:
    """PyG's class that ``kind`` is or comes from."""
    return next((cls for cls in _forwards if issubclass(kind, cls)), None)


def computes_alike(kind: Any) -> bool:
    """Whether ``kind``, a subclass of PyG's layer, has its parent's computation."""
    parent = family(kind)
    if kind.forward is not _forwards[parent] or _methods[parent](kind) != _own_methods[parent]:
        return False
    return all(_is_pygs(function) for function in _generated(kind))


def know(kind: type) -> None:
    """Look at what PyG has generated for ``kind``, so that torch.compile need not."""
    all(map(_is_pygs, _generated(kind)))


def why_not(layer: Any, original: Any) -> str | None:
    """What is not PyG's own, in words; None where all is.

    Args:
        layer: A drop-in.
        original: The class whose ``forward`` it stands for.
    """
    if torch.compiler.is_compiling():
        return _why_not_traced(layer, original)
    attributes = layer.__dict__
    if attributes["_explain"]:
        return "explain mode"
    if any(_hooks(layer)):
        return "message passing hooks are registered"
    if _overridden(type(layer), original):
        return "a method of message passing is overridden"
    if not attributes.keys().isdisjoint(_names) and _replaced(attributes):
        return "a method of message passing is overridden"
    if torch._C._is_tracing():
        return "torch.jit.trace or an ONNX export"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func transforms or forward-mode differentiation"
    return None if _sums(layer._modules["aggr_module"]) else "another sum, or hooks on it"


def _why_not_traced(layer: Any, original: Any) -> str | None:
    """The same in steps that torch.compile follows."""
    if torch.onnx.is_in_onnx_export():
        return "torch.jit.trace or an ONNX export"
    if layer._explain:
        return "explain mode"
    if any(len(getattr(layer, hooks)) for hooks in HOOKS):
        return "message passing hooks are registered"
    kind, parent = type(layer), family(original)
    for name, function in zip(_names_of[parent], _own_methods[parent], strict=True):
        getattr(layer, name)  # so that torch.compile guards against one put there later
        if getattr(kind, name) is not function or name in layer.__dict__:
            return "a method of message passing is overridden"
    for name in GENERATED:
        getattr(layer, name)
        known = any(getattr(kind, name) is function for function in _seen)
        if not known or name in layer.__dict__:
            return "a method of message passing is overridden"
    for name, function in zip(FUNCTIONS[parent], _own_functions[parent], strict=True):
        if "." not in name and getattr(_modules[parent], name) is not function:
            return "a method of message passing is overridden"
    if original.forward is not _forwards[parent]:
        return "a method of message passing is overridden"
    return None if _sums(layer.aggr_module) else "another sum, or hooks on it"


def _sums(aggregation: Any) -> bool:
    """Whether it is the sum that it is by its class, and nothing else."""
    forward, reduce = _aggregation
    mine = aggregation.__dict__
    return runs(aggregation, forward) and SumAggregation.reduce is reduce and "reduce" not in mine


def _overridden(kind: Any, original: Any) -> bool:
    """Whether a class computes otherwise than PyG's source says."""
    parent = _families.get(original) or family(original)
    return (
        original.forward is not _forwards[parent]
        or _methods[parent](kind) != _own_methods[parent]
        or _functions[parent](_modules[parent]) != _own_functions[parent]
        or not (_own_generated.issuperset(_generated(kind)) or all(map(_is_pygs, _generated(kind))))
    )


def _replaced(attributes: dict[str, Any]) -> bool:
    """Whether an instance has methods that are not PyG's, who puts them there after explaining."""
    own_names = _names.intersection(attributes)
    methods = [getattr(attributes[name], "__func__", None) for name in own_names]
    return not (own_names.issubset(GENERATED) and all(map(_is_pygs, methods)))


def _is_pygs(function: Any) -> bool:
    """Whether PyG generated ``function`` or has it in its source; remembered where it did."""
    if function in _own_generated:
        return True
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    name = getattr(function, "__name__", "")
    if module is None or name not in GENERATED or getattr(module, name, None) is not function:
        return False
    file = os.path.basename(getattr(module, "__file__", None) or "")
    if not module.__name__.endswith(f"_{name}") or not file.startswith(f"{module.__name__}_"):
        return False
    _own_generated.add(function)
    _seen.append(function)
    return True
