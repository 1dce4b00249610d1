"""Statistics of attention, against formulas written out node by node."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from torch import nn
from torch_geometric import nn as pyg

import gatkernels
from gatkernels import Graph
from gatkernels.experiments import attention as A
from gatkernels.models import GAT, MLP


def random_graph(nodes=40, edges=160, seed=0):
    """Edges with loops, parallel ones, and nodes that none of them ends at."""
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(0, nodes, (2, edges), generator=generator)
    edge_index[1] %= nodes - 3
    return edge_index


def random_attention(heads=3, seed=0):
    """Softmax over the edges into each node, of scores with a wide spread."""
    edges = random_graph(seed=seed)
    scores = 5 * torch.randn(edges.shape[1], heads, generator=torch.Generator().manual_seed(seed))
    alpha = torch.zeros_like(scores)
    for node in edges[1].unique():
        into = edges[1] == node
        alpha[into] = scores[into].softmax(0)
    return A.Attention(edges, alpha, 40)


def uniform_attention(edge_index, num_nodes, heads=2):
    degree = torch.bincount(edge_index[1], minlength=num_nodes)
    alpha = (1.0 / degree[edge_index[1]])[:, None].expand(-1, heads)
    return A.Attention(edge_index, alpha, num_nodes)


@pytest.mark.parametrize("version", [1, 2])
def test_watch(version):
    torch.manual_seed(0)
    model = GAT(6, 4, 3, heads=2, dropout=0.6, layers=3, version=version).train()
    x = torch.randn(40, 6)
    graph = Graph.from_edge_index(random_graph(), 40, self_loops=True)
    out, layers = A.watch(model, x, graph)
    assert model.training
    assert [layer.attention.heads for layer in layers] == [2, 2, 1]
    for layer in layers:
        attention = layer.attention
        assert torch.equal(attention.edge_index, graph.edge_index)
        sums = attention.sum_rows(attention.alpha)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-6)
        low, high = torch.zeros(40, 1), A.uniform_entropy(attention)[:, None]
        assert ((A.entropy(attention) >= low) & (A.entropy(attention) <= high + 1e-6)).all()
    with torch.no_grad():
        assert torch.equal(out, model.eval()(x, graph))  # no hook is left behind
        conv = layers[1].module
        expected = conv(layers[1].inputs, graph, return_attention_weights=True)[1][1]
    assert torch.equal(layers[1].attention.alpha, expected)


@pytest.mark.parametrize("swapped", [False, True])
def test_watch_a_network_of_pygs_layers(swapped):
    torch.manual_seed(0)
    model = GAT(6, 4, 3, heads=2, dropout=0.5)
    layers = [pyg.GATConv(6, 4, 2), pyg.GATConv(8, 3, concat=False)]
    theirs = pyg.Sequential("x, e", [(layers[0], "x, e -> x"), nn.ELU(), (layers[1], "x, e -> x")])
    for layer, conv in zip(layers, model.convs, strict=True):
        layer.load_state_dict(conv.state_dict())
    if swapped:
        assert "2 of 2 layers swapped" in str(gatkernels.accelerate(theirs))
    x, edges = torch.randn(40, 6), random_graph()
    expected, watched = A.watch(model, x, edges)
    out, found = A.watch(theirs, x, edges)
    torch.testing.assert_close(out, expected)
    assert len(found) == 2
    for ours, other in zip(watched, found, strict=True):
        torch.testing.assert_close(
            A.entropy(other.attention), A.entropy(ours.attention), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "EdgeGATConv"])
def test_watch_dgls_layers(name, swapped):
    dgl = pytest.importorskip("dgl")
    edges = random_graph()
    users_to_items = ("user", "buys", "item")
    graph = dgl.heterograph({users_to_items: tuple(edges)}, {"user": 40, "item": 40})
    sizes = {"edge_feats": 3} if name == "EdgeGATConv" else {}
    options = {"out_feats": 4, "num_heads": 2, "allow_zero_in_degree": True}
    layer = getattr(dgl.nn, name)((6, 6), **sizes, **options)
    model = dgl.nn.HeteroGraphConv({"buys": layer})
    if swapped:
        assert "1 of 1 layers swapped" in str(gatkernels.accelerate(model))
    x = {"user": torch.randn(40, 6), "item": torch.randn(40, 6)}
    of_edges = (torch.randn(160, 3),) if sizes else ()
    expected, alpha = layer.eval()(graph, (x["user"], x["item"]), *of_edges, get_attention=True)
    out, (watched,) = A.watch(model, graph, x, {"buys": of_edges})
    assert torch.equal(out["item"], expected)
    assert torch.equal(watched.attention.alpha, alpha[..., 0])
    assert torch.equal(watched.attention.edge_index, edges)


def test_watch_a_model_that_asks_itself():
    conv = pyg.GATConv(6, 4, 2)
    model = pyg.Sequential("x, e", [(lambda x, e: conv(x, e, None, None, True), "x, e -> x")])
    model.conv = conv
    (out, (_, alpha)), (layer,) = A.watch(model, torch.randn(40, 6), random_graph())
    assert out.shape == (40, 8)
    assert torch.equal(alpha, layer.attention.alpha)


def test_watch_without_attention():
    out, layers = A.watch(MLP(6, 4, 3), torch.randn(40, 6), random_graph())
    assert out.shape == (40, 3)
    assert layers == []


def test_entropy_node_by_node():
    attention = random_attention()
    found = A.entropy(attention)
    for node in range(40):
        rows = attention.alpha[attention.dst == node].double().numpy()
        expected = scipy_entropy(rows, base=2, axis=0) if len(rows) else np.zeros(3)
        np.testing.assert_allclose(found[node], expected, atol=1e-6)


def test_uniform_attention_has_the_logarithm_of_the_degree():
    attention = uniform_attention(random_graph(), 40)
    degree = np.bincount(attention.dst, minlength=40)
    expected = np.log2(np.maximum(degree, 1))
    np.testing.assert_allclose(A.uniform_entropy(attention), expected)
    np.testing.assert_allclose(A.entropy(attention)[:, 0], expected, atol=1e-6)
    assert degree.min() == 0
    assert degree.max() > 4


def test_attention_on_one_edge_has_no_entropy():
    edges = torch.tensor([[0, 1, 2], [0, 0, 0]])
    attention = A.Attention(edges, torch.tensor([[0.0], [1.0], [0.0]]), 3)
    assert A.entropy(attention).tolist() == [[0.0], [0.0], [0.0]]


def test_overlap():
    edges = torch.tensor([[0, 1, 2, 0], [0, 0, 1, 1]])
    heads = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.9, 0.1, 0.5], [0.1, 0.9, 0.5]])
    attention = A.Attention(edges, heads, 3)
    share = A.overlap(A.with_uniform([attention]), attention)
    expected = torch.tensor(
        [[1.0, 0.1, 0.55, 0.55], [0.1, 1.0, 0.55, 0.55], [0.55, 0.55, 1, 1], [0.55, 0.55, 1, 1]],
        dtype=torch.float64,
    )
    torch.testing.assert_close(share, expected, rtol=0, atol=1e-6)


def test_overlap_leaves_out_nodes_without_a_choice():
    edges = torch.tensor([[0, 1], [0, 1]])
    attention = A.Attention(edges, torch.ones(2, 2), 2)
    assert A.overlap(attention.alpha, attention).isnan().all()


def test_likeness():
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 0, 3]])
    assert A.likeness(torch.tensor([4, 4, 1, 1]), edges).tolist() == [1, 0, 0, 1]
    many = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]]).float()
    assert A.likeness(many, edges).tolist() == pytest.approx([1 / 3, 0, 1 / 2, 1])


def test_homophily_node_by_node():
    attention = random_attention()
    labels = torch.randint(0, 2, (40,), generator=torch.Generator().manual_seed(1))
    learned, uniform = [], []
    for node in range(40):
        into = (attention.dst == node) & (attention.src != node)
        same = (labels[attention.src[into]] == labels[node]).double().numpy()
        if len(same) == 0 or same.min() == same.max():
            continue
        alpha = attention.alpha[into].double().numpy()
        learned.append((alpha * same[:, None]).sum(0) / alpha.sum(0))
        uniform.append(same.mean())
    found = A.homophily(attention, labels)
    gain = np.stack(learned) - np.array(uniform)[:, None]
    assert found.nodes == len(learned) > 10
    assert found.uniform == pytest.approx(np.mean(uniform))
    np.testing.assert_allclose(found.attention, np.mean(learned, axis=0))
    np.testing.assert_allclose(found.error, 1.96 * gain.std(0, ddof=1) / len(learned) ** 0.5)


def test_uniform_attention_prefers_nobody():
    attention = uniform_attention(random_graph(), 40)
    found = A.homophily(attention, torch.arange(40) % 3)
    assert found.attention.tolist() == pytest.approx([found.uniform] * 2)
    assert found.error.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_homophily_where_nobody_has_a_choice():
    attention = uniform_attention(random_graph(), 40)
    found = A.homophily(attention, torch.zeros(40, dtype=torch.long))
    assert found.nodes == 0
    assert found.attention.isnan().all()
