"""The dense steps around the kernels: large results in large pages, dropout by the kernels' draws.

On a CPU the first touch of a fresh result in small pages costs about as much as computing it, and
gathering its rows at random misses the translation buffer. torch draws dropout there on one
thread, which for wide inputs takes longer than the attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gatkernels.backends import native
from gatkernels.ops import transforms
from gatkernels.ops.library import define
from gatkernels.ops.philox import draw_seed


def _plain(x: Tensor, elements: int) -> bool:
    """Whether torch's own op serves as well: not a large float result on the CPU."""
    return (
        torch.compiler.is_compiling()
        or x.device.type != "cpu"
        or x.dim() != 2
        or elements * x.element_size() < native.LARGE
        or native.cpu_missing is not None
        or torch.is_autocast_enabled("cpu")
        or transforms.active()
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        out = native.empty(x, x.shape[0], weight.shape[0])
        if bias is None:
            return torch.mm(x, weight.t(), out=out)
        return torch.addmm(bias, x, weight.t(), out=out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            grad @ weight if needs_x else None,
            grad.t() @ x if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


class _Linears(torch.autograd.Function):
    """Several products of one input, side by side; their gradients need not be brought together."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, *parameters: Tensor) -> tuple[Tensor, ...]:
        weights, biases = parameters[:count], parameters[count:]
        ctx.save_for_backward(x, *weights)
        ctx.biases = len(biases)
        ctx.set_materialize_grads(False)
        weight = torch.cat(weights)
        out = native.empty(x, x.shape[0], weight.shape[0])
        if biases:
            torch.addmm(torch.cat(biases), x, weight.t(), out=out)
        else:
            torch.mm(x, weight.t(), out=out)
        return tuple(out.split([w.shape[0] for w in weights], 1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        x, *weights = ctx.saved_tensors
        needs_x, _, *needs = ctx.needs_input_grad
        of_x = None
        for grad, weight in zip(grads, weights, strict=True):
            if needs_x and grad is not None:
                of_x = grad @ weight if of_x is None else torch.addmm(of_x, grad, weight)
        of_weights = [
            grad.t() @ x if need and grad is not None else None
            for need, grad in zip(needs, grads, strict=False)
        ]
        of_biases = [
            grad.sum(0) if need and grad is not None else None
            for need, grad in zip(needs[len(weights) :], grads, strict=False)
        ]
        return of_x, None, *of_weights, *of_biases


class _AddBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        return torch.add(x, bias, out=native.empty(x, *x.shape))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, grad.sum(0)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``."""
    mixed = x.dtype != weight.dtype or (bias is not None and bias.dtype != x.dtype)
    if mixed or _plain(x, x.shape[0] * weight.shape[0]):
        return F.linear(x, weight, bias)
    result: Tensor = _Linear.apply(x, weight, bias)
    return result


def linears(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    """``x @ weight.T + bias`` of each, columns of one matrix; without ``biases`` where empty."""
    sizes = [weight.shape[0] for weight in weights]
    if any(t.dtype != x.dtype for t in (*weights, *biases)) or _plain(x, x.shape[0] * sum(sizes)):
        bias = torch.cat([*biases]) if biases else None
        return [*F.linear(x, torch.cat([*weights]), bias).split(sizes, 1)]
    return [*_Linears.apply(x, len(weights), *weights, *biases)]


def add_bias(x: Tensor, bias: Tensor) -> Tensor:
    """``x + bias``."""
    if _plain(x, x.numel()) or x.dtype != bias.dtype:
        return x + bias
    result: Tensor = _AddBias.apply(x, bias)
    return result


def _feature_dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """On the CPU, float32 or float64; value 64 b + 16 w + l: word w of counter (16 b + l, 0)."""
    return native.feature_dropout(x, p, seed)


def _elu_and_dropout(x: Tensor, p: float, seed: Tensor | None) -> Tensor:
    return native.feature_dropout(x, p, seed, native.ELU)


def _elu_and_dropout_backward(grad: Tensor, x: Tensor, p: float, seed: Tensor | None) -> Tensor:
    return native.feature_dropout(x, p, seed, native.ELU_GRAD, grad)


def _like_x(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


feature_dropout: Callable[..., Tensor]
feature_dropout = define(_feature_dropout, "Tensor", _like_x, devices=("CPU",))
elu_and_dropout = define(_elu_and_dropout, "Tensor", _like_x, devices=("CPU",))
elu_and_dropout_backward = define(_elu_and_dropout_backward, "Tensor", _like_x, devices=("CPU",))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, seed: Tensor) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.p = p
        return feature_dropout(x, p, seed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Dropout.apply(grad, ctx.p, ctx.saved_tensors[0]), None, None


class _EluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, seed: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, seed)
        ctx.p = p
        result: Tensor = elu_and_dropout(x, p, seed)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, seed = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            grad = grad if seed is None else _Dropout.apply(grad, ctx.p, seed)
            return grad * (F.elu(x.clamp(max=0.0)) + 1.0), None, None
        return elu_and_dropout_backward(grad, x, ctx.p, seed), None, None


def _native_values(x: Tensor) -> bool:
    return native.floats_on_cpu(x) and not transforms.active()


def elu_dropout(x: Tensor, p: float) -> Tensor:
    """Dropout of ``elu(x)``; none where ``p`` is 0."""
    if not _native_values(x):
        return F.dropout(F.elu(x), p)
    result: Tensor = _EluDropout.apply(x, p, draw_seed(x.device) if p > 0.0 else None)
    return result


def dropout(x: Tensor, p: float) -> Tensor:
    """Dropout of ``x`` in training, the same for any number of threads."""
    if not _native_values(x):
        return F.dropout(x, p)
    result: Tensor = _Dropout.apply(x, p, draw_seed(x.device))
    return result
