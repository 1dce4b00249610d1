"""Graphs and cases."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from gatkernels.bench import cases, generate, graphs, measure
from gatkernels.bench.cases import Spec
from gatkernels.bench.peers import PEERS

TWINS = [name for name, spec in graphs.GRAPHS.items() if spec.generated]
REAL = [name for name in graphs.GRAPHS if name not in TWINS]
CPU = torch.device("cpu")


def test_power_law_is_simple_symmetric_seeded_and_skewed() -> None:
    edges = generate.power_law(1000, 8000, 300)
    assert edges.shape == (2, 8000)
    keys = edges[0] * 1000 + edges[1]
    assert (np.diff(keys) > 0).all()
    assert (edges[0] != edges[1]).all()
    assert np.array_equal(np.sort(edges[1] * 1000 + edges[0]), keys)
    assert np.array_equal(edges, generate.power_law(1000, 8000, 300))
    assert not np.array_equal(edges, generate.power_law(1000, 8000, 300, seed=1))
    degree = np.bincount(edges[1], minlength=1000)
    assert 150 < degree.max() < 400
    assert np.median(degree) < 8


def test_generated_graphs_hold_what_they_say() -> None:
    assert generate.uniform(500, 4000).shape == (2, 4000)
    hub = generate.one_hub(50)
    assert np.bincount(hub[1])[0] == 49
    loops = generate.with_loops(generate.power_law(100, 600, 40), 100)
    assert (loops[0] == loops[1]).sum() == 100
    batch = generate.batch(3, 50, 200, 20)
    assert batch.shape == (2, 600)
    assert (batch[0] // 50 == batch[1] // 50).all()
    near = generate.communities(2048, 20_000, 200, size=128)
    inside = (near[0] // 128 == near[1] // 128).mean()
    assert 0.8 < inside < 0.97
    mixed = generate.shuffled(near, 2048)
    assert sorted(np.bincount(mixed[1], minlength=2048)) == sorted(
        np.bincount(near[1], minlength=2048)
    )
    assert (mixed[0] // 128 == mixed[1] // 128).mean() < 0.2


def test_power_law_refuses_what_would_not_end() -> None:
    with pytest.raises(ValueError, match="too many"):
        generate.power_law(16, 200, 8)
    with pytest.raises(graphs.Unavailable, match=r"no reddit at scale 0\.0005"):
        graphs.GRAPHS["reddit"].load(0.0005)


@pytest.mark.parametrize("name", sorted({*TWINS} - {"reddit", "proteins"}))  # too dense, cut down
def test_twin_scales(name: str) -> None:
    spec = graphs.GRAPHS[name]
    scale = 40_000 / spec.num_edges
    edges = spec.load(scale)
    assert edges.num_src == edges.num_dst
    assert int(edges.edge_index.max()) < edges.num_src
    if name != "ppi":
        assert edges.edge_index.shape[1] == pytest.approx(spec.num_edges * scale, rel=0.01)


def test_cache_is_written_once_and_survives_damage() -> None:
    built = []

    def build() -> generate.IntArray:
        built.append(1)
        return np.array([[0, 0, 2], [1, 2, 0]])

    first = graphs.cached("pair", build)
    second = graphs.cached("pair", build)
    assert len(built) == 1
    assert np.array_equal(first, second)
    assert second.dtype == np.int64
    folder = graphs.cache_dir() / "graphs"
    (stored,) = folder.iterdir()
    assert f"v{graphs.CACHE_VERSION}" in stored.name
    stored.write_bytes(b"PK\x03\x04 broken")
    assert np.array_equal(graphs.cached("pair", build), first)
    assert len(built) == 2


def test_missing_data_gives_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GATKERNELS_DATA", raising=False)
    with pytest.raises(graphs.Unavailable, match="GATKERNELS_DATA is not set"):
        cases.build(Spec("cnr-2000"))
    monkeypatch.setenv("GATKERNELS_DATA", str(tmp_path))
    with pytest.raises(graphs.Unavailable, match=r"no file graphs/cnr-2000\.npz"):
        cases.build(Spec("cnr-2000"))


@pytest.mark.parametrize(
    "name", [name for name, spec in graphs.GRAPHS.items() if not spec.generated]
)
def test_real_graph_has_the_edges_it_says(name: str) -> None:
    if name == "cnr-2000":
        pytest.skip("5 M edges take longer to read than a test may")
    try:
        edges = graphs.GRAPHS[name].load(1.0)
    except graphs.Unavailable as reason:
        pytest.skip(str(reason))
    assert edges.edge_index.shape == (2, graphs.GRAPHS[name].num_edges)
    assert int(edges.edge_index[0].max()) < edges.num_src
    assert int(edges.edge_index[1].max()) < edges.num_dst


def test_adjacency_reader_runs_no_foreign_code(tmp_path: Path) -> None:
    path = tmp_path / "bad"
    path.write_bytes(pickle.dumps(os.getcwd))
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError, match="unexpected"):
        graphs._AdjacencyUnpickler(file).load()


def test_choose_combines_what_is_named() -> None:
    assert [spec.name for spec in cases.choose(cases.QUICK)] == [spec.name for spec in cases.QUICK]
    chosen = cases.choose(cases.QUICK, ["cora", "arxiv"], ["8x8", "1xC"], layers=["gatv2"])
    assert [spec.name for spec in chosen] == [
        "cora gatv2 8x8",
        "cora gatv2 1xC",
        "arxiv gatv2 8x8",
        "arxiv gatv2 1xC",
    ]
    names = [spec.name for spec in cases.FULL]
    assert len(set(names)) == len(names)
    assert {spec.graph for spec in cases.FULL} == set(graphs.GRAPHS)
    assert {spec.shape for spec in cases.FULL} == set(cases.SHAPES)
    assert {spec.dtype for spec in cases.FULL} == set(cases.DTYPES)


def test_scale_is_automatic_on_a_cpu() -> None:
    assert Spec("reddit").graph_scale == 1 / 32
    assert Spec("ppi", "4x256").graph_scale == 1 / 4
    assert Spec("arxiv").graph_scale == 1.0
    assert Spec("reddit", scale=0.5).graph_scale == 0.5
    assert Spec("reddit", device="cuda").graph_scale == 1.0


@pytest.mark.parametrize("shape", ["8", "0x8", "8xD", "x"])
def test_shape_is_heads_by_channels(shape: str) -> None:
    with pytest.raises(ValueError, match="heads x channels"):
        cases.parse_shape(shape, 7)
    assert cases.parse_shape("1xC", 7) == (1, 7)


def test_inputs_rotate_until_caches_are_cold() -> None:
    case = cases.build(Spec("tiny"))
    rotation = case.rotation
    assert len(rotation) == measure.copies_for_cold_caches(64 * (12 + 64) * 4, CPU) > 1
    assert not torch.equal(rotation[0][0], rotation[1][0])
    step = PEERS["reference"].prepare(case)
    assert not torch.equal(step.forward(), step.forward())
    step.hold = True
    assert torch.equal(step.forward(), step.forward())
    assert measure.copies_for_cold_caches(2**40, CPU) == 1
