"""Drop-in layers: what :func:`gatkernels.accelerate` and the frameworks' modules agree on.

A drop-in is a subclass of a framework's own layer that overrides ``forward`` alone, so parameters,
initialisation, state dict, hooks and ``isinstance`` stay the framework's. It adds no attribute to
an instance, so ``module.__class__ = Ours`` makes one of an existing layer, and assigning the
framework's class undoes it::

    class GATConv(DropIn, framework.GATConv):
        original = framework.GATConv

        @classmethod
        def why_not(cls, module):  # what the layer's options alone rule out
            return None if module.aggr == "add" else f"aggr={module.aggr!r}"

        def forward(self, x, edge_index, ...):
            reason = self.why_not(self) or self.why_not_now(self) or ...  # or this call
            if reason is not None:
                self.fell_back(reason)
                return super().forward(x, edge_index, ...)
            ...

    DROP_INS = drop_ins(GATConv, ...)

A framework's module is named in :data:`FRAMEWORKS` and holds such a table; it is imported only
where the user has imported the framework. Reasons are short phrases that say what stands in the
way ("message hooks are registered"), without a full stop.
"""

from __future__ import annotations

import types
from collections import Counter
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _modules
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

#: A module of a framework that its users import, and ours that holds ``DROP_INS`` for its layers.
FRAMEWORKS = {"torch_geometric.nn": "gatkernels.pyg", "dgl": "gatkernels.dgl"}


class DropIn:
    """Mixin, before the framework's class; no ``__slots__``, which would forbid the swap."""

    original: ClassVar[type[nn.Module]]
    #: Read by the shared layer code; "auto", "cpu", "reference" ...
    backend: str = "auto"

    @classmethod
    def why_not(cls, module: Any) -> str | None:
        """Why no call of ``module`` (an ``original``) can take the fused path; None if one can."""
        return None

    @classmethod
    def why_not_now(cls, module: Any) -> str | None:
        """What keeps calls of ``module`` from the fused path for the moment, as hooks do."""
        return None

    @classmethod
    def computes_alike(cls, kind: type[nn.Module]) -> bool:
        """Whether ``kind``, a subclass of ``original``, computes as it: only set up otherwise."""
        return False

    def fell_back(self, reason: str) -> None:
        """Count a call that goes to the framework's code; not inside ``torch.compile``."""
        if not torch.compiler.is_compiling():
            _fallbacks.setdefault(self, Counter())[reason] += 1


#: What a call of the module runs besides its forward; empty where nothing was registered.
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def watched(module: nn.Module) -> bool:
    """Whether hooks, of its own or of all modules, see the calls of ``module``."""
    m = module
    return bool(
        m._forward_hooks
        or m._forward_pre_hooks
        or m._backward_hooks
        or m._backward_pre_hooks
        or _modules._global_forward_hooks
        or _modules._global_forward_pre_hooks
        or _modules._global_backward_hooks
        or _modules._global_backward_pre_hooks
    )


def runs(module: nn.Module, forward: Any) -> bool:
    """Whether calling ``module`` runs ``forward``, its class's as it was, and nothing else."""
    unchanged = type(module).forward is forward and "forward" not in module.__dict__
    return unchanged and not watched(module)


def own(cls: type, name: str) -> Any:
    """The function that ``cls`` has by its own source under ``name``.

    One that was put in its place is not it; then the result is like no other object.
    """
    owner = next((c for c in cls.__mro__ if name in c.__dict__), None)
    found = None if owner is None else owner.__dict__[name]
    if owner is None or not isinstance(found, types.FunctionType):
        return object()
    genuine = (found.__module__, found.__qualname__) == (
        owner.__module__,
        f"{owner.__name__}.{name}",
    )
    return found if genuine else object()


def plain_tensors(*tensors: Any) -> bool:
    """Whether none is of a subclass (a quantised weight), which may compute in its own way."""
    if torch.compiler.is_compiling():  # where a plain tensor has the tracer's own class
        return not any(t is not None and is_traceable_wrapper_subclass(t) for t in tensors)
    return _PLAIN.issuperset(map(type, tensors))


_PLAIN = frozenset((Tensor, nn.Parameter, type(None)))


def drop_ins(*classes: type[DropIn]) -> dict[type[nn.Module], type[DropIn]]:
    """The drop-in of each class of the framework's."""
    return {ours.original: ours for ours in classes}


def fallbacks(module: Any) -> Counter[str]:
    """How many calls of this drop-in went to the framework's code, by reason."""
    return _fallbacks.get(module, Counter())


_fallbacks: WeakKeyDictionary[Any, Counter[str]] = WeakKeyDictionary()


def derived(ours: type[DropIn], kind: type[nn.Module]) -> type[DropIn]:
    """The drop-in of a subclass ``kind`` of the framework's layer that computes as its parent."""
    found = _derived.get(kind)
    if found is None:
        body = {"original": kind, "__module__": kind.__module__, "__reduce_ex__": _reduce}
        made = types.new_class(kind.__name__, (ours, kind), {}, lambda space: space.update(body))
        found = _derived[kind] = made
        found.__qualname__ = kind.__qualname__
    return found


def is_derived(kind: type) -> bool:
    return issubclass(kind, DropIn) and _derived.get(kind.original) is kind


def _reduce(self: Any, protocol: Any) -> Any:
    """Copies and pickles name the user's class, and ours to make the drop-in of."""
    kind = type(self)
    _, _, *state = super(kind, self).__reduce_ex__(protocol)
    return (_revive, (kind.__bases__[0], kind.original), *state)


def _revive(ours: type[DropIn], kind: type[nn.Module]) -> Any:
    made: Any = derived(ours, kind)
    return made.__new__(made)


_derived: dict[type[nn.Module], type[DropIn]] = {}
