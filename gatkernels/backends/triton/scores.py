"""Row-wise scores: what an edge from j to i scores by channel, of two rows of features.

A scorer is of the family ``l_e = sum_c att[c] value(x_j + edge_e, x_i)[c]``: two functions, and the
loops of rowwise.py and rowwise_backward.py do the rest. They take blocks of channels, which
broadcast, and are finite where both rows are zero, as channels beyond the last one are.

Kernels get them as constants, in a tuple among their arguments. As a ``tl.constexpr`` the tuple
would work, too, but Triton would then look up compiled kernels on disk by the functions' names, and
find old code after a change; in a plain tuple it goes by their source. Within a kernel, functions
can be passed on and called, not assigned.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from typing import Any, NamedTuple

import triton
import triton.language as tl

from gatkernels.backends.triton.common import leaky


class Scorer(NamedTuple):
    """Functions of ``x_j``, ``x_i`` and the slope of a leaky ReLU.

    Attributes:
        value: what att weighs, and its gradient sums.
        reach: the derivatives of value by x_j, and by x_i.
    """

    value: Any
    reach: Any


@triton.jit
def gatv2_value(x_j, x_i, slope):
    return leaky(x_j + x_i, slope)


@triton.jit
def gatv2_reach(x_j, x_i, slope):
    step = tl.where(x_j + x_i > 0, 1.0, slope)
    return step, step


SCORERS = {
    "gatv2": Scorer(gatv2_value, gatv2_reach),  # Brody et al., 2022
}
