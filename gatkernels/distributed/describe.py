"""A sharded graph in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gatkernels.distributed.graph import ShardedGraph

#: Of the layer whose bytes are told.
HEADS, CHANNELS, BYTES = 8, 32, 4


def text(graph: ShardedGraph) -> str:
    """Nodes, edges, halo, what a layer sends, and which exchange that is and why."""
    rank, ranks, (sources, destinations) = graph.peers.rank, graph.peers.size, _halo(graph)
    loops = ", self_loops=True" if graph.self_loops else ""
    lines = [
        f"ShardedGraph(rank {rank} of {ranks}, device='{graph.device}'{loops}",
        f"  nodes: {len(graph.nodes):,} of {graph.total_nodes:,}",
        f"  edges into them: {graph.num_edges:,} of {graph.total_edges:,}",
        f"  halo: {sources:,} sources, {destinations:,} destinations; rho {graph.rho:.2f}",
        f"  a layer of {HEADS} heads of {CHANNELS} channels in float32 gets (forward + backward):",
    ]
    lines += [f"    {_volumes(graph, name)}" for name in ("gat", "gatv2", "dot")]
    return "\n".join([*lines, f"  exchange: {_why(graph)})"])


def _halo(graph: ShardedGraph) -> tuple[int, int]:
    return graph.sizes[graph.peers.rank].halo


def _volumes(graph: ShardedGraph, name: str) -> str:
    sources, destinations = _halo(graph)
    row, fields = HEADS * CHANNELS * BYTES, 4 * HEADS * 4
    forward = {"gat": row + HEADS * 4, "gatv2": row, "dot": 2 * row}[name]
    backward = {"gat": row, "gatv2": 2 * row, "dot": 2 * row}[name] + fields
    by_halo = _megabytes(sources * forward, destinations * backward)
    others = graph.total_nodes - len(graph.nodes)
    # of own heads the rows of all others, and of all other heads own rows
    own_heads, ranks = row // graph.peers.size, graph.peers.size
    turns = {"gat": (1, 1), "gatv2": (2, 1), "dot": (3, 1)}[name]
    one_way = (
        turns[0] * others * own_heads + turns[1] * len(graph.nodes) * row * (ranks - 1) // ranks
    )
    back = turns[1] * others * own_heads + turns[0] * len(graph.nodes) * row * (ranks - 1) // ranks
    return f"{name}: {by_halo} by halo, {_megabytes(one_way, back)} by heads"


def _megabytes(*counts: int) -> str:
    return " + ".join(f"{count / 2**20:.1f}" for count in counts) + " MiB"


def _why(graph: ShardedGraph) -> str:
    if graph.exchange != "auto":
        return f"{graph.exchange}, as asked for"
    by: dict[str, list[str]] = {}
    for name in ("gat", "gatv2", "dot"):
        by.setdefault(graph.exchange_of(name), []).append(
            f"{name} (rho limit {graph.limit(name):g})"
        )
    return "auto: " + "; ".join(f"{exchange} for {', '.join(of)}" for exchange, of in by.items())
