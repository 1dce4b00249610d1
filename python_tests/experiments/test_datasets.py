"""What data sets hold: real ones, generated ones, and the split of those without a public one."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import split_sizes

from gatkernels.experiments import datasets, synthetic

DATA = os.environ.get("GATKERNELS_DATA")


@pytest.mark.skipif(DATA is None, reason="GATKERNELS_DATA is not set")
@pytest.mark.parametrize(
    ("name", "nodes", "edges", "features", "split"),
    [
        ("cora", 2708, 10556, 1433, (140, 500, 1000)),
        ("citeseer", 3327, 9104, 3703, (120, 500, 1000)),
        ("pubmed", 19717, 88648, 500, (60, 500, 1000)),
        ("ppi", 56944, 1587264, 50, (44906, 6514, 5524)),
        ("photo", 7650, 238162, 745, (160, 240, 7250)),
        ("computers", 13752, 491722, 767, (200, 300, 13252)),
        ("cs", 18333, 163788, 6805, (300, 450, 17583)),
        ("physics", 34493, 495924, 8415, (100, 150, 34243)),
    ],
)
def test_real_data(name, nodes, edges, features, split, monkeypatch):
    root = Path(__file__).parents[1]  # a relative folder is meant from the repository
    monkeypatch.chdir(root)
    monkeypatch.setenv("GATKERNELS_DATA", DATA)
    data = datasets.load(name)
    assert (data.num_nodes, data.edge_index.shape[1], data.num_features) == (nodes, edges, features)
    assert split_sizes(data) == split
    assert "GATKERNELS_DATA" in data.source
    assert data.public_split == (name in ("cora", "citeseer", "pubmed", "ppi"))
    assert (data.x.layout == torch.sparse_csr) == (name not in ("ppi", "photo", "computers"))
    if name != "ppi":
        ones = torch.ones(features, 1)
        sums = data.x @ ones
        assert torch.all((sums - 1).abs().lt(1e-5) | sums.eq(0))
    assert not list(Path(DATA).rglob("processed"))


def test_synthetic_graph():
    shape = synthetic.SHAPES["cora"]
    words, edge_index, y = synthetic.citation_graph(shape, seed=0)
    source, target = edge_index
    assert words.shape == (2708, 1433)
    assert set(words.unique().tolist()) == {0.0, 1.0}
    assert float(words.sum(dim=1).mean()) == pytest.approx(shape.words, rel=0.05)
    assert tuple(y.bincount().tolist()) == shape.class_sizes
    assert torch.unique(edge_index, dim=1).shape == (2, 2 * shape.links)
    assert not torch.any(source == target)
    keys, reverse = source * 2708 + target, target * 2708 + source
    assert torch.equal(keys.sort().values, reverse.sort().values)
    degree = source.bincount(minlength=2708)
    assert int(degree.min()) >= 1
    assert int(degree.max()) > 10 * float(degree.float().mean())
    assert float((y[source] == y[target]).float().mean()) == pytest.approx(0.81, abs=0.03)


def test_synthetic_graph_is_seeded():
    one, same, other = (synthetic.citation_graph(synthetic.SHAPES["cora"], s) for s in (4, 4, 5))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[1], other[1])


def test_split():
    y = torch.arange(2000) % 4
    masks = datasets.random_split(y, 4, 7, *datasets.PLANETOID_SPLIT)
    assert [int(mask.sum()) for mask in masks] == [80, 500, 1000]
    assert int(torch.stack(masks).sum(dim=0).max()) == 1
    assert y[masks[0]].bincount().tolist() == [20] * 4
    again = datasets.random_split(y, 4, 7, *datasets.PLANETOID_SPLIT)
    assert all(torch.equal(a, b) for a, b in zip(masks, again, strict=True))
    other = datasets.random_split(y, 4, 8, *datasets.PLANETOID_SPLIT)
    assert not torch.equal(masks[0], other[0])


def test_split_by_class():
    y = torch.arange(2000) % 4
    train, val, test = datasets.random_split(y, 4, 0, *datasets.SHCHUR_SPLIT)
    assert y[train].bincount().tolist() == [20] * 4
    assert y[val].bincount().tolist() == [30] * 4
    assert torch.all(train.int() + val.int() + test.int() == 1)


def test_each_seed_has_its_split_where_none_is_public(data_folder):
    one, two = (datasets.load("photo", data_folder, seed=seed) for seed in (0, 1))
    assert torch.equal(one.y, two.y)
    assert not torch.equal(one.train_mask, two.train_mask)
    assert torch.equal(one.with_split(1).train_mask, two.train_mask)
    cora = datasets.load("cora", data_folder)
    assert cora.with_split(5) is cora


def test_ppi_joins_its_graphs(small_ppi):
    data = small_ppi
    assert data.multilabel
    assert data.metric == "micro-F1"
    assert data.node_ptr.tolist() == [0, 30, 50, 75, 90, 110, 134]
    assert split_sizes(data) == (90, 20, 24)
    assert data.graphs_of(data.train_mask) == [0, 1, 2, 3]
    assert data.graphs_of(data.test_mask) == [5]
    nodes, edges = data.graph_range(1, 2)
    assert (nodes.start, nodes.stop) == (30, 50)
    chain = torch.stack([torch.arange(19), torch.arange(1, 20)])
    assert torch.equal(edges, torch.cat([chain, chain.flip(0)], dim=1))
    assert torch.equal(data.y[:, :11], data.x[:, :1].expand(-1, 11))
    assert not data.exact_mask[0]


def test_ppi_from_the_loaders_files(small_ppi, tmp_path):
    """PyG parses its raw files to the same data set, whatever order its edges come in."""
    raw = tmp_path / "raw-ppi" / "raw"
    raw.mkdir(parents=True)
    graphs = {"train": range(4), "valid": range(4, 5), "test": range(5, 6)}
    for split, numbers in graphs.items():
        nodes, edges = small_ppi.graph_range(numbers.start, numbers.stop)
        count = nodes.stop - nodes.start
        links = [{"source": int(a), "target": int(b)} for a, b in edges.t()]
        links += [{"source": node, "target": node} for node in range(count)]
        graph = {
            "directed": True,
            "multigraph": False,
            "graph": {},
            "nodes": [{"id": node} for node in range(count)],
            "links": links,
        }
        (raw / f"{split}_graph.json").write_text(json.dumps(graph))
        np.save(raw / f"{split}_feats.npy", small_ppi.x[nodes].numpy())
        np.save(raw / f"{split}_labels.npy", small_ppi.y[nodes].numpy())
        sizes = small_ppi.node_ptr.diff()[numbers.start : numbers.stop]
        np.save(raw / f"{split}_graph_id.npy", np.repeat(np.array(numbers), sizes.numpy()))
    again = datasets.load("ppi", raw.parent)
    for name in ("x", "y", "train_mask", "val_mask", "test_mask", "node_ptr", "edge_ptr"):
        assert torch.equal(getattr(again, name), getattr(small_ppi, name)), name
    pairs = [set(map(tuple, data.edge_index.t().tolist())) for data in (again, small_ppi)]
    assert pairs[0] == pairs[1]
    assert not list(raw.rglob("processed"))


def test_amazon_as_pyg_reads_it(data_folder):
    from torch_geometric.datasets import Amazon
    from torch_geometric.transforms import NormalizeFeatures

    ours = datasets.load("photo", data_folder)
    theirs = Amazon(str(data_folder / "amazon"), "Photo", transform=NormalizeFeatures())[0]
    assert torch.equal(ours.edge_index, theirs.edge_index)
    torch.testing.assert_close(ours.x.to_dense(), theirs.x)
    assert torch.equal(ours.y, theirs.y)


def test_fingerprint_tells_data_apart(small_cora, data_folder):
    assert small_cora.fingerprint() == datasets.load("cora", data_folder).fingerprint()
    changed = replace(small_cora, y=small_cora.y.flip(0))
    assert changed.fingerprint() != small_cora.fingerprint()
