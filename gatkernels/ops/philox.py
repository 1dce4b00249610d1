"""Dropout's random numbers: seeds, and which of the words they make keep a value.

A value is kept where its word is at least ``threshold(p)``, and then times ``scale(p)``. Words are
those of Philox4x32-10 (Salmon et al., 2011), see :mod:`gatkernels.reference`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gatkernels.ops.library import define

_empty = torch.empty


def threshold(p: float) -> int:
    """Of 32 bits; where no word should pass, the last one does, times 0."""
    return min(math.ceil(p * 2.0**32), 2**32 - 1)


def scale(p: float) -> float:
    return 1.0 / (1.0 - p) if p * 2.0**32 <= 2**32 - 1 else 0.0


def _draw_seed(like: Tensor) -> Tensor:
    return like.new_empty(1).random_()


_op = define(
    _draw_seed,
    "Tensor",
    lambda like: like.new_empty(1),
    devices=("CompositeExplicitAutograd",),
    tags=(torch.Tag.nondeterministic_seeded,),
)


def draw_seed(device: torch.device) -> Tensor:
    """A fresh 64-bit dropout seed ``[1]`` from torch's generator of ``device``.

    An op of its own where compiled, so that eager and compiled code draw the same. Its argument
    says the device, and is a fresh ``torch.empty``, which compilers never take for another, so that
    no two calls are taken for one.
    """
    like = _empty(0, dtype=torch.int64, device=device)
    seed: Tensor = _op(like) if torch.compiler.is_compiling() else _draw_seed(like)
    return seed
