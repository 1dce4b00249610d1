"""An operator on a graph of several processes, which talk over gloo, beside the same in one."""

from __future__ import annotations

import io
import multiprocessing
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gatkernels.distributed import ShardedGraph
from gatkernels.fuzz.operators import OperatorCase

#: Processes of a world; the process that checks a case is the first of them.
RANKS = 3
#: Whose rows an operator's tensors have; the others have those of nodes.
OF_EDGES = ("alpha", "edge_score", "edge")


@dataclass(frozen=True)
class ShardedCase:
    """``case``, whose sources are its destinations, on a graph of ``ranks`` processes.

    Attributes:
        exchange: Of :class:`gatkernels.distributed.ShardedGraph`.
        scattered: Nodes have owners by chance, else they are owned in ranges.
    """

    case: OperatorCase = field(default_factory=OperatorCase)
    ranks: int = 2
    exchange: str = "halo"
    scattered: bool = False

    def check(self) -> None:
        """Raises: AssertionError, where a result is not that of one process: the same bits by
        halo, but for sums over ranks, which keep the operator's rule as all do by heads."""
        case, graph = self.case, self.case.edges.graph()
        inputs = case.inputs(graph)
        found = _together(self)
        expected = case.call(graph, inputs, case.backend)
        for name, got, want in zip(case.results(), found, expected, strict=True):
            same = torch.equal(got.nan_to_num(), want.nan_to_num())
            if self.exchange == "halo" and name != "grad of att" and not same:
                raise AssertionError(f"{name}: other bits than in one process")
        case.compare(graph, inputs, found, found)

    def on_rank(self, group: Any) -> list[tuple[Tensor, Tensor | None]]:
        """Results of one rank, and the rows of the whole that they are; None: a part of a sum."""
        case, rank = self.case, dist.get_rank(group)
        whole, edge_index = case.edges.graph(), case.edges.edge_index()
        nodes, edges = whole.num_dst, edge_index.shape[1]
        generator = torch.Generator().manual_seed(case.edges.seed)
        cuts = torch.randint(edges + 1, (self.ranks - 1,), generator=generator).sort().values
        bounds = [0, *cuts.tolist(), edges]
        owners = torch.randint(self.ranks, (nodes,), generator=generator)
        graph = ShardedGraph.from_edge_index(
            edge_index[:, bounds[rank] : bounds[rank + 1]],
            nodes,
            case.edges.self_loops,
            partition=owners if self.scattered else "range",
            exchange=self.exchange,
            group=group,
        )

        def rows_of(name: str) -> Tensor | None:
            if name == "att":
                return None
            return graph.edge_ids if name in OF_EDGES else graph.nodes

        def mine(name: str, whole: Tensor) -> Tensor:
            rows = rows_of(name)
            return whole if rows is None else whole[rows]

        names = case.results()
        grads = case.grads(whole)
        own = [mine(n, t) for n, t in zip(case.names(), case.inputs(whole), strict=True)]
        of_own = [mine(n, t) for n, t in zip(names, grads, strict=False)]
        found = case.call(graph, own, case.backend, of_own)
        rows = [rows_of(name.removeprefix("grad of ")) for name in names]
        return list(zip(found, rows, strict=True))


class World:
    """Processes that wait for cases, and this one."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        store = Path(self._folder.name, "store").as_uri()
        self._pipes, self._others = [], []
        for rank in range(1, RANKS):
            pipe, other = context.Pipe()
            process = context.Process(target=_serve, args=(rank, store, other), daemon=True)
            process.start()
            other.close()
            self._pipes.append(pipe)
            self._others.append(process)
        self._groups = _join(0, store)

    def run(self, case: ShardedCase) -> list[list[tuple[Tensor, Tensor | None]]]:
        """Results of each rank."""
        pipes = self._pipes[: case.ranks - 1]
        for pipe in pipes:
            pipe.send(case)
        found = [case.on_rank(self._groups[case.ranks])]
        for pipe in pipes:
            text, data = pipe.recv()
            if text:
                raise AssertionError(text)
            found.append(torch.load(io.BytesIO(data), weights_only=True))
        return found

    def close(self) -> None:
        for process in self._others:
            process.kill()
        dist.destroy_process_group()
        self._folder.cleanup()


def _join(rank: int, store: str) -> dict[int, Any]:
    """The groups of the first ranks, by how many they are."""
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    return {size: dist.new_group(list(range(size)), backend="gloo") for size in (2, RANKS)}


def _serve(rank: int, store: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    groups = _join(rank, store)
    while True:
        try:
            case = pipe.recv()
        except EOFError:
            return
        data, text = io.BytesIO(), ""
        try:
            torch.save(case.on_rank(groups[case.ranks]), data)
        except Exception as error:
            text = f"rank {rank}: {type(error).__name__}: {error}"
        pipe.send((text, data.getvalue()))


_world: World | None = None


def _together(case: ShardedCase) -> list[Tensor]:
    """Results of all ranks, as one process has them. A world in which a rank failed is left."""
    global _world
    if _world is None:
        _world = World()
    try:
        found = _world.run(case)
    except BaseException:
        _world.close()
        _world = None
        raise
    whole = []
    for parts in zip(*found, strict=True):
        values, rows = [value for value, _ in parts], [row for _, row in parts if row is not None]
        if rows:
            order = torch.cat(rows)
            assert torch.equal(order.sort().values, torch.arange(len(order))), "rows of no rank"
            whole.append(torch.cat(values)[order.argsort()])
        else:
            whole.append(torch.stack([t.double() for t in values]).sum(0).to(values[0].dtype))
    return whole
