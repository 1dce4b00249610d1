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
            reason = self.why_not(self) or ...  # what this call rules out
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

from collections import Counter
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

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

    def fell_back(self, reason: str) -> None:
        """Count a call that goes to the framework's code; not inside ``torch.compile``."""
        if not torch.compiler.is_compiling():
            _fallbacks.setdefault(self, Counter())[reason] += 1


def drop_ins(*classes: type[DropIn]) -> dict[type[nn.Module], type[DropIn]]:
    """The drop-in of each class of the framework's."""
    return {ours.original: ours for ours in classes}


def fallbacks(module: Any) -> Counter[str]:
    """How many calls of this drop-in went to the framework's code, by reason."""
    return _fallbacks.get(module, Counter())


_fallbacks: WeakKeyDictionary[Any, Counter[str]] = WeakKeyDictionary()
