"""Random cases against what is known to be right: ``gatkernels fuzz``.

An operator's results and gradients against the same in float64 (:class:`OperatorCase`), a layer's
against its peer's (:class:`LayerCase`), and calls with an argument that is wrong
(:class:`ArgumentCase`). A case is a few numbers, and is checked by ``case.check()``; a
:class:`Chunk` is many of them.
"""

from gatkernels.fuzz.arguments import ArgumentCase
from gatkernels.fuzz.edges import EdgeSpec
from gatkernels.fuzz.layers import LayerCase
from gatkernels.fuzz.operators import OperatorCase
from gatkernels.fuzz.run import Chunk

__all__ = ["ArgumentCase", "Chunk", "EdgeSpec", "LayerCase", "OperatorCase"]
