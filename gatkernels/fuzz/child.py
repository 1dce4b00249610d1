"""Cases are checked in a process of their own, so that one that crashes or hangs is an answer."""

from __future__ import annotations

import multiprocessing
import os
import signal
from types import TracebackType
from typing import Any, Protocol

#: Seconds that cases sent together may take; most take milliseconds each.
PATIENCE = 300.0


class Case(Protocol):
    def check(self) -> None:
        """Raises: AssertionError, with what is wrong."""


class CaseFailed(Exception):
    """What a case has shown."""


def _serve(pipe: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    while True:
        try:
            case = pipe.recv()
        except EOFError:
            return
        try:
            case.check()
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            pipe.send(f"{kind}{error}")
        else:
            pipe.send(None)


class Child:
    """The process, started anew after one that died."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self._pipe: Any = None

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._process is None:
            return
        self._pipe.close()
        self._process.join(0.5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process = None

    def _answered(self) -> bool:
        """Within ``patience``, in which time while this process is stopped does not count."""
        return any(self._pipe.poll(self.patience / 60) for _ in range(60))

    def check(self, case: Case) -> None:
        """Raises: CaseFailed, where the case fails, kills its process, or takes too long."""
        if self._process is None:
            # threads that spin while they wait take the processor from those beside them
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")
            self._pipe, other = self._context.Pipe()
            # no daemon, as those may not have children: ranks
            self._process = self._context.Process(target=_serve, args=(other,))
            self._process.start()
            other.close()
        self._pipe.send(case)
        answer: str | None
        try:
            if not self._answered():
                self._process.kill()
                answer = f"no answer within {self.patience:.0f} s"
                self._end()
            else:
                answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            name = signal.Signals(-code).name if code and code < 0 else f"status {code}"
            answer = f"the process died: {name}"
            self._end()
        if answer is not None:
            raise CaseFailed(answer)
