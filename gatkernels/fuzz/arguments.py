"""A call with one argument that is wrong: an error that names one, or else a right result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gatkernels import BackendUnavailable
from gatkernels.fuzz.operators import OPERATORS, OperatorCase
from gatkernels.testing import assert_within, longest_row

#: What is done to a tensor.
TENSOR_FAULTS: dict[str, Callable[[Tensor], Any]] = {
    "a dimension more": lambda t: t[None],
    "a dimension less": lambda t: t.flatten(0, 1),
    "a row more": lambda t: torch.cat([t, t[:1]]) if t.shape[0] else t.new_zeros(1, *t.shape[1:]),
    "a row less": lambda t: t[1:],
    "a column more": lambda t: torch.cat([t, t[..., :1]], -1),
    "a head more": lambda t: torch.cat([t, t[:, :1]], 1),
    "integers": lambda t: t.long(),
    "complex": lambda t: t.to(torch.complex64),
    "another dtype": lambda t: t.to(torch.float64 if t.dtype == torch.float32 else torch.float32),
    "sparse": lambda t: t.to_sparse(),
    "on meta": lambda t: t.to("meta"),
    "a list": lambda t: t.tolist(),
    "a number": lambda t: 1.0,
    "nothing": lambda t: None,
    "text": lambda t: "x",
}
#: Options that are wrong, by name.
OPTION_FAULTS: dict[str, tuple[Any, ...]] = {
    "dropout": (-0.1, 1.5, float("nan"), "much", None),
    "backend": ("nobody", 3, None),
    "graph": (None, "graph", torch.zeros(2, 3, dtype=torch.int64)),
}


def _exact(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


@dataclass(frozen=True)
class ArgumentCase:
    """``case`` with ``fault``: the name of an input and of TENSOR_FAULTS, or of an option and the
    place of its value in OPTION_FAULTS."""

    case: OperatorCase = field(default_factory=OperatorCase)
    fault: tuple[str, Any] = ("x", "nothing")

    def check(self) -> None:
        """Raises: AssertionError, where the answer is another kind of error, names no argument, or
        is a result where the reference has none."""
        graph = self.case.edges.graph()
        given: dict[str, Any] = {"graph": graph, "backend": self.case.backend}
        given |= zip(self.case.names(), self.case.inputs(graph), strict=True)
        name, how = self.fault
        wrong = OPTION_FAULTS[name][how] if name in OPTION_FAULTS else None
        given[name] = wrong if name in OPTION_FAULTS else TENSOR_FAULTS[how](given[name])
        answer = self._answer(given)
        if isinstance(answer, Exception):
            text = str(answer)
            named = [f"'{one}'" in text for one in (*given, "dropout", "edge", "edge_query")]
            if not isinstance(answer, (TypeError, ValueError, BackendUnavailable)) or not any(
                named
            ):
                raise AssertionError(f"{type(answer).__name__}: {text}") from answer
            return
        if name in OPTION_FAULTS:
            raise AssertionError(f"{name}={wrong!r} was taken")
        plain = self._answer({**given, "backend": "reference"})
        if isinstance(plain, Exception):
            raise AssertionError(f"taken, where the reference says: {plain}")
        truth = self._answer({n: _exact(t) for n, t in given.items()} | {"backend": "reference"})
        results = enumerate(zip(answer, plain, truth, strict=True))
        for place, (got, rough, exact) in results:
            if got.device.type == "meta":
                continue
            scale = exact.abs().amax() if exact.numel() else exact.new_zeros(())
            assert_within(f"result {place}", got, rough, exact, scale, longest_row(graph))

    def _answer(self, given: dict[str, Any]) -> Any:
        given = dict(given)
        graph = given.pop("graph")
        try:
            found = OPERATORS[self.case.operator](graph, **given)
        except Exception as error:
            return error
        return found if isinstance(found, tuple) else (found,)
