"""A partition on disk becomes the graph that its edges make, or an error on every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from torch import Tensor

from gatkernels import Graph, gat_attention
from gatkernels.distributed import ShardedGraph, stream

NODES, EDGES, RANKS = 90, 700, 3


def edges_of() -> Tensor:
    return torch.randint(NODES, (2, EDGES), generator=torch.Generator().manual_seed(1))


def features() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(2)
    return torch.randn(NODES, 2, 5, generator=draw), torch.randn(NODES, 2, generator=draw)


def step(graph: Graph, rows: Tensor) -> tuple[Tensor, ...]:
    """Attention with dropout, and its gradients; of some rows of the features."""
    x, score = (t[rows].requires_grad_() for t in features())
    torch.manual_seed(5)
    out = gat_attention(graph, x, score, score, dropout=0.4)
    return out.detach(), *torch.autograd.grad(out.square().sum(), (x, score))


def loaded(rank: int, folders: list[Path]) -> list[Any]:
    found = []
    for folder in folders:
        graph = ShardedGraph.load(folder, "halo", self_loops=True)
        found.append((graph.nodes, step(graph, graph.nodes)))
    return found


def parts(folder: Path, method: str, count: int = RANKS, seed: int = 0) -> Path:
    np.save(folder / "edges.npy", edges_of().numpy())
    out = folder / f"{method}-{count}-{seed}"
    stream.partition_file(folder / "edges.npy", NODES, count, method, out, seed)
    return out


def test_loaded_graphs_have_the_bits_of_one_process(tmp_path: Path) -> None:
    folders = [parts(tmp_path, method) for method in ("range", "random")]
    whole = step(Graph.from_edge_index(edges_of(), NODES, self_loops=True), torch.arange(NODES))
    for found in worlds.run(RANKS, loaded, folders):
        for nodes, results in found:
            assert len(nodes)
            for one, many in zip(whole, results, strict=True):
                assert torch.equal(one[nodes], many)


def failing(rank: int, folders: list[Path]) -> list[str]:
    texts = []
    for folder in folders:
        with pytest.raises((ValueError, OSError, RuntimeError)) as error:
            ShardedGraph.load(folder / str(rank) if folder.name == "apart" else folder)
        texts.append(f"{type(error.value).__name__}: {error.value}")
    return texts


def test_what_cannot_be_loaded_is_an_error_on_all(tmp_path: Path) -> None:
    four = parts(tmp_path, "range", 4)
    damaged = parts(tmp_path, "range")
    (damaged / "part-00001" / "in_src").write_bytes(b"1234")
    apart = tmp_path / "apart"
    apart.mkdir()
    for rank in range(RANKS):
        (apart / str(rank)).symlink_to(parts(tmp_path, "random", seed=rank))
    found = worlds.run(RANKS, failing, [four, damaged, tmp_path / "nowhere", apart])
    for rank, texts in enumerate(found):
        assert texts[0] == (
            f"ValueError: ShardedGraph.load: {four}: holds 4 parts, but there are 3 processes; "
            "start 4, or write 3 parts with gatkernels partition"
        )
        assert texts[1].startswith("ValueError: rank 1: ShardedGraph.load: ")
        assert "part-00001/in_src: 4 bytes, expected" in texts[1]
        assert texts[2].startswith("FileNotFoundError: ShardedGraph.load: "), rank
        assert "no partitioned graph, manifest.json is missing" in texts[2]
        assert texts[3].startswith("RankError: ShardedGraph.load: the ranks disagree; rank ")
        assert "a manifest of SHA-256" in texts[3]
