"""Peers that are wrong, absent, greedy or broken, and how to time a case in this process."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from torch import Tensor

from gatkernels.backends import threads
from gatkernels.bench import cases, results, run
from gatkernels.bench.cases import Case, Spec
from gatkernels.bench.peers import PEERS, Layer, Peer, address


class Wrong(Peer):
    """The reference with one row of its output changed."""

    name = "wrong"
    delta = 1e-2

    def layer(self, case: Case, graph: Any) -> Layer:
        reference = PEERS["reference"]
        right = reference.layer(case, reference.graph(case))
        bump = torch.zeros(case.edges.num_dst, 1)
        bump[7] = self.delta
        return Layer(lambda x: right.call(x) + bump, right.parameters)


class NotANumber(Wrong):
    name = "nan"
    delta = float("nan")


class WrongGradient(Peer):
    name = "wrong-gradient"

    def layer(self, case: Case, graph: Any) -> Layer:
        reference = PEERS["reference"]
        right = reference.layer(case, reference.graph(case))
        lin = right.parameters[0]
        return Layer(lambda x: right.call(x) + 0.01 * (lin - lin.detach()).sum(), right.parameters)


class Misshapen(Wrong):
    name = "misshapen"

    def layer(self, case: Case, graph: Any) -> Layer:
        right = super().layer(case, graph)
        return Layer(lambda x: right.call(x)[1:], right.parameters)


class Right(Wrong):
    name = "right"
    delta = 0.0


class Broken(Peer):
    name = "broken"

    def layer(self, case: Case, graph: Any) -> Layer:
        raise RuntimeError("no such kernel")


class Hungry(Right):
    """Asks for more memory than there is, on all but the smallest graphs."""

    name = "hungry"

    def layer(self, case: Case, graph: Any) -> Layer:
        right = super().layer(case, graph)

        def call(x: cases.Inputs) -> Tensor:
            torch.empty(2**44, dtype=torch.uint8)
            return right.call(x)

        return Layer(call, right.parameters)


class Absent(Peer):
    name = "absent"

    def unavailable(self, spec: Spec) -> str:
        return "not installed"


class Sleeping(Right):
    name = "sleeping"

    def layer(self, case: Case, graph: Any) -> Layer:
        time.sleep(60)
        return super().layer(case, graph)


class Crashing(Right):
    name = "crashing"

    def layer(self, case: Case, graph: Any) -> Layer:
        os._exit(3)


def timed(spec: Spec, *peers: Peer) -> results.CaseResult:
    """A case checked and timed in this process, nothing weighed."""
    outcomes = [results.PeerResult(peer.name) for peer in peers]
    addresses = [address(peer) for peer in peers]
    return run.time_case(spec, addresses, outcomes, 0.01, lambda text: None)


def threads_of_kernels(_: Any) -> int:
    """What `process.call` runs to see how many threads kernels take there."""
    return threads.count()
