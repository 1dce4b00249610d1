"""The plots: each takes axes and returns them, and what is drawn equals the numbers."""

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from test_attention import random_attention, uniform_attention

from gatkernels.experiments import attention as A
from gatkernels.experiments import plots

LABELS = torch.arange(40) % 4


@pytest.fixture
def axes():
    return Figure(figsize=(4, 3)).subplots()


def test_degrees(axes):
    edges = random_attention().edge_index
    assert plots.degrees(edges, 40, axes) is axes
    other = edges[:, edges[0] != edges[1]]
    expected = np.bincount(np.bincount(other[1], minlength=40))[1:]
    drawn = dict(zip(*(values.tolist() for values in axes.lines[0].get_data()), strict=True))
    assert drawn == {k + 1: n for k, n in enumerate(expected.tolist()) if n}


def test_degrees_without_edges(axes):
    plots.degrees(torch.zeros(2, 0, dtype=torch.long), 5, axes)
    assert axes.texts[0].get_text() == "5 nodes without edges"


def test_accuracy_by_degree(axes):
    degree = np.repeat([0, 1, 5, 6, 30, 300], [12, 20, 15, 10, 3, 2])
    score = (np.arange(degree.size) % 3 > 0).astype(float)
    assert plots.accuracy_by_degree(degree, score, axes, measure="test accuracy") is axes
    means = axes.lines[0].get_ydata()
    labels = [label.get_text() for label in axes.get_xticklabels()]
    groups = [(0, 0), (1, 1), (5, 300)]  # 30 and 300 are too few to stand alone
    assert [label.split("\n")[1] for label in labels] == ["n=12", "n=20", "n=30"]
    for mean, (low, high) in zip(means, groups, strict=True):
        assert mean == pytest.approx(100 * score[(degree >= low) & (degree <= high)].mean())
    assert axes.get_ylabel() == "test accuracy (%)"


def test_wilson_interval():
    from gatkernels.experiments.plots.degrees import wilson

    assert wilson(0.8, 100) == pytest.approx((0.71117, 0.86663), abs=1e-4)
    assert wilson(1.0, 5)[1] == 1.0
    assert wilson(0.0, 5)[0] == 0.0


def test_entropy(axes):
    attention = random_attention()
    assert plots.entropy(attention, 1, axes, bins=10) is axes
    chooses = attention.degrees() >= 2
    filled = [patch.get_height() for patch in axes.patches if patch.get_fill()]
    edges = np.linspace(0, float(A.uniform_entropy(attention).max()) * 1.001, 11)
    expected = np.histogram(A.uniform_entropy(attention)[chooses], edges)[0]
    assert filled == expected.tolist()
    assert sum(filled) == int(chooses.sum())
    outline = axes.patches[-1].get_xy()[1:-1:2, 1]
    expected = np.histogram(A.entropy(attention)[chooses, 1], edges)[0]
    assert outline.tolist() == expected.tolist()
    assert f"mean {A.entropy(attention)[chooses, 1].mean():.2f}" in axes.texts[0].get_text()


def test_the_entropies_text_lies_above_the_bars():
    """Also where panels share their heights and one has its tallest bar at the right."""
    left, right = Figure(figsize=(5, 2)).subplots(1, 2, sharey=True)
    attention = random_attention()
    plots.entropy(attention, 0, left)
    plots.entropy(uniform_attention(torch.stack([torch.arange(90) % 9, torch.arange(90) // 10]), 9),
                  0, right)  # fmt: skip
    canvas = FigureCanvasAgg(left.figure)
    canvas.draw()  # limits of axes are settled by then
    renderer = canvas.get_renderer()
    for axes in (left, right):
        text = axes.texts[0].get_window_extent(renderer)
        tallest = max(patch.get_window_extent(renderer).y1 for patch in axes.patches)
        assert text.y0 > tallest


def test_uniform_attention_fills_the_histogram(axes):
    plots.entropy(uniform_attention(random_attention().edge_index, 40), 0, axes)
    filled = [patch.get_height() for patch in axes.patches if patch.get_fill()]
    assert axes.patches[-1].get_xy()[1:-1:2, 1].tolist() == filled


def test_head_overlap(axes):
    attention = random_attention()
    assert plots.head_overlap([attention, attention], axes) is axes
    share = axes.images[0].get_array()
    np.testing.assert_allclose(share[:3, :3], A.overlap(attention.alpha, attention))
    np.testing.assert_allclose(share[:3, 3:6], share[:3, :3])
    assert len(axes.texts) == 49
    assert [label.get_text() for label in axes.get_xticklabels()] == list("123123u")


def test_homophily(axes):
    attention = random_attention()
    assert plots.homophily([attention], LABELS, axes) is axes
    found = A.homophily(attention, LABELS)
    np.testing.assert_allclose(axes.lines[0].get_xdata(), 100 * found.attention)
    np.testing.assert_allclose(axes.lines[-1].get_xdata(), [100 * found.uniform] * 3)


def test_neighbourhood(axes):
    attention = random_attention()
    node = int(attention.degrees().argmax())
    assert plots.neighbourhood(attention, node, LABELS, 1, axes) is axes
    into = (attention.dst == node) & (attention.src != node)
    alpha = attention.alpha[into, 1].numpy()
    widths = np.asarray(axes.collections[0].get_linewidths())
    ratio = np.sort(widths) / np.sort(alpha)[-len(widths) :]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    dots = sum(len(collection.get_offsets()) for collection in axes.collections[1:])
    assert dots == int(into.sum()) + 1
    itself = float(attention.alpha[(attention.dst == node) & (attention.src == node), 1].sum())
    assert len(axes.patches) == (itself > 0)


def test_node_without_edges_and_node_with_its_loop_alone(axes):
    attention = A.Attention(torch.tensor([[1], [1]]), torch.ones(1, 1), 2)
    plots.neighbourhood(attention, 0, LABELS[:2], 0, axes)
    assert not axes.patches
    plots.neighbourhood(attention, 1, LABELS[:2], 0, axes)
    assert len(axes.patches) == 1


@pytest.mark.parametrize("relative", [False, True])
def test_subgraph(axes, relative):
    attention = random_attention()
    nodes = torch.arange(5, 25)
    assert plots.subgraph(attention, nodes, LABELS, 2, axes, relative=relative) is axes
    inside = ((attention.edge_index >= 5) & (attention.edge_index < 25)).all(0)
    inside &= attention.src != attention.dst
    values = (attention.relative() if relative else attention.alpha)[inside, 2]
    lines = axes.collections[0]
    np.testing.assert_allclose(lines.get_array(), np.sort(values))
    assert len(lines.get_segments()) == int(inside.sum())


def test_around():
    from gatkernels.experiments.plots.graphs import around

    chain = torch.stack([torch.arange(9), torch.arange(1, 10)])
    attention = uniform_attention(torch.cat([chain, chain.flip(0)], 1), 10)
    assert around(attention, 4, 5).tolist() == [2, 3, 4, 5, 6]
    assert around(attention, 4, 99).tolist() == list(range(10))


def test_tsne(axes):
    features = torch.eye(4).repeat(10, 1) * 5 + torch.randn(40, 4)
    points = plots.project(features)
    assert points.shape == (40, 2)
    assert np.array_equal(points, plots.project(features))
    assert plots.tsne(points, LABELS, axes, edges=torch.tensor([[0, 1], [2, 3]])) is axes
    lines, *classes = axes.collections
    np.testing.assert_allclose(lines.get_segments(), points[[[0, 2], [1, 3]]])
    for c, dots in enumerate(classes):
        np.testing.assert_allclose(dots.get_offsets(), points[c == LABELS], rtol=1e-6)
    near = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(40)
    assert (LABELS[near.argmin(1)] == LABELS).double().mean() > 0.9
    with pytest.raises(ValueError, match="finite"):
        plots.project(features * float("nan"))


def test_strongest():
    attention = random_attention()
    edges = plots.strongest(attention, 10)
    relative = attention.relative().mean(1)
    relative[attention.src == attention.dst] = -1
    assert torch.equal(edges, attention.edge_index[:, relative.argsort(descending=True)[:10]])


def test_every_class_looks_different():
    looks = [tuple(plots.class_style(c).values()) for c in range(20)]
    assert len(set(looks)) == 20
