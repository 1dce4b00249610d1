"""Calls of operators on a graph that is made to break shards, in one process and in several."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatkernels import Graph, dot_attention, gat_attention, gatv2_attention
from gatkernels.distributed import ShardedGraph
from gatkernels.functional import gat_attention_of_features

NODES = 90
#: Nodes without edges, some of them at the end, so that a rank may have no edges at all.
ALONE = {3, 40, 86, 87, 88, 89}
HUB = 2300  # edges into one node, and out of one: more than a chunk of the CPU's
SEED = 11


class Case(NamedTuple):
    """A call of an operator."""

    name: str
    dtype: torch.dtype = torch.float32
    heads: int = 3
    channels: int = 5
    dropout: float = 0.0
    edges: bool = False  # inputs of edges
    attention: bool = False
    self_loops: bool = False


#: Which inputs a call has: of sources, of destinations, of edges, and weights.
INPUTS: dict[str, dict[str, str]] = {
    "gat": {"x": "nodes", "score_src": "nodes", "score_dst": "nodes", "edge_score": "edges"},
    "features": {"x": "nodes", "att_src": "weights", "att_dst": "weights", "edge_score": "edges"},
    "gatv2": {"x_src": "nodes", "x_dst": "nodes", "att": "weights", "edge": "edges"},
    "dot": {"q": "nodes", "k": "nodes", "v": "nodes", "edge": "edges", "edge_query": "nodes"},
}


def edges(hub: int = HUB) -> Tensor:
    """``[2, E]``: random ones, some of them parallel, self loops, and two hubs; mixed."""
    generator = torch.Generator().manual_seed(5)
    others = torch.tensor([n for n in range(NODES) if n not in ALONE])

    def ends(count: int) -> Tensor:
        return others[torch.randint(len(others), (count,), generator=generator)]

    few = torch.stack([ends(400), ends(400)])
    loops = ends(12).repeat(2, 1)
    into = torch.stack([ends(hub), torch.full((hub,), 17)])
    out_of = torch.stack([torch.full((hub,), 60), ends(hub)])
    every = torch.cat([few, few[:, :30], loops, into, out_of], 1)
    return every[:, torch.randperm(every.shape[1], generator=generator)]


def owners(ranks: int) -> Tensor:
    """By chance; the last of more than two ranks gets nothing."""
    generator = torch.Generator().manual_seed(ranks)
    return torch.randint(max(ranks - (ranks > 2), 1), (NODES,), generator=generator)


def tensors(case: Case, num_edges: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inputs of all nodes and edges, and the gradients of the results."""
    generator = torch.Generator().manual_seed(3)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(case.dtype)

    h, c, f, d = case.heads, case.channels, 4, case.channels + 2
    sizes = {
        "score_src": (NODES, h),
        "score_dst": (NODES, h),
        "edge_score": (num_edges, h),
        "att_src": (1, h, c),
        "att_dst": (1, h, c),
        "att": (h, c),
        "v": (NODES, h, d),
        "edge": (num_edges, f) if case.name == "dot" else (num_edges, h, c),
        "edge_query": (NODES, h, f),
    }
    made = {name: normal(*sizes.get(name, (NODES, h, c))) for name in INPUTS[case.name]}
    if not case.edges:
        made = {n: t for n, t in made.items() if not n.startswith("edge")}
    grads = {"out": normal(NODES, h, d if case.name == "dot" else c)}
    if case.edges and case.name == "dot":
        grads["edge_out"] = normal(NODES, h, f)
    alpha = normal(num_edges, h)
    if case.attention:
        grads["alpha"] = alpha.to(torch.float64 if case.dtype == torch.float64 else torch.float32)
        grads["alpha"] = grads["alpha"].to(case.dtype)
    return made, grads


def results(
    case: Case, graph: Graph, given: dict[str, Tensor], grads: dict[str, Tensor], backend: str
) -> dict[str, Tensor]:
    """Results by name, and the gradients of inputs as ``grad of ...``."""
    leaves = {name: t.clone().requires_grad_() for name, t in given.items()}
    how: dict[str, Any] = {
        "dropout": case.dropout,
        "return_attention": case.attention,
        "backend": backend,
    }
    call = {"gat": gat_attention, "gatv2": gatv2_attention, "dot": dot_attention}
    if case.name == "features":
        out, alpha = gat_attention_of_features(graph, **leaves, **how)
        outs = [out] if alpha is None else [out, alpha]
    else:
        found = call[case.name](graph, **leaves, **how)
        outs = [*found] if isinstance(found, tuple) else [found]
    torch.autograd.backward(outs, [*grads.values()])
    named = {name: t.detach() for name, t in zip(grads, outs, strict=True)}
    return named | {f"grad of {name}": t.grad for name, t in leaves.items()}


def in_one_process(case: Case, backend: str) -> dict[str, Tensor]:
    graph = Graph.from_edge_index(edges(), NODES, case.self_loops)
    torch.manual_seed(SEED)
    return results(case, graph, *tensors(case, graph.num_edges), backend)


def share_of(rank: int, ranks: int) -> Tensor:
    """Of the edges, a share for each rank, uneven ones; the first rank of several has none."""
    every = edges()
    if ranks == 1:
        return every
    bounds = torch.linspace(0, 1, ranks).square().mul(every.shape[1]).long()
    return every[:, bounds[rank - 1] if rank else 0 : bounds[rank]]


def part_of(kind: str, t: Tensor, graph: ShardedGraph) -> Tensor:
    if kind == "weights":
        return t
    return t[graph.nodes if kind == "nodes" else graph.edge_ids]


def kind_of(case: Case, name: str) -> str:
    kinds = {"out": "nodes", "edge_out": "nodes", "alpha": "edges", **INPUTS[case.name]}
    return kinds[name.removeprefix("grad of ")]


def on_shards(rank: int, cases: list[Case], graphs: dict[str, Any], backend: str) -> Any:
    """Results of every case on own rows, by each of the ways to build a graph; with the ids of own
    nodes and edges."""
    ranks = torch.distributed.get_world_size()
    found: dict[str, Any] = {}
    for label, how in graphs.items():
        for self_loops in sorted({case.self_loops for case in cases}):
            graph = ShardedGraph.from_edge_index(share_of(rank, ranks), NODES, self_loops, **how)
            for case in cases:
                if case.self_loops != self_loops:
                    continue
                given, grads = (
                    {name: part_of(kind_of(case, name), t, graph) for name, t in made.items()}
                    for made in tensors(case, graph.total_edges)
                )
                torch.manual_seed(SEED + rank)
                here = results(case, graph, given, grads, backend)
                found[label, case] = here, graph.nodes, graph.edge_ids
    return found


def together(case: Case, parts: list[Any]) -> dict[str, Tensor]:
    """What all ranks have found, as one process would have it."""
    whole: dict[str, Tensor] = {}
    for name, first in parts[0][0].items():
        kind = kind_of(case, name)
        if kind == "weights":
            whole[name] = torch.stack([found[name].double() for found, _, _ in parts]).sum(0)
            continue
        rows = torch.cat([found[name] for found, _, _ in parts])
        ids = torch.cat([nodes if kind == "nodes" else of_edges for _, nodes, of_edges in parts])
        assert torch.equal(ids.sort().values, torch.arange(len(ids)))
        whole[name] = torch.empty_like(rows).index_copy_(0, ids, rows)
        assert first.dtype == rows.dtype
    return whole
