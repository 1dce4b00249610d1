"""The plots: what is drawn equals the numbers, nothing is empty, no label lies on another."""

import base64
import html.parser
import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from test_attention import random_attention, uniform_attention

from gatkernels import cli
from gatkernels.experiments import attention as A
from gatkernels.experiments import figures, plots, runs
from gatkernels.experiments.comparison import Comparison
from gatkernels.experiments.figures import FIGURES, Choice
from gatkernels.experiments.view import View

LABELS = torch.arange(40) % 4


@pytest.fixture
def axes():
    return Figure(figsize=(4, 3)).subplots()


def run(*args):
    return cli.main([str(arg) for arg in args])


def check_page(figure):
    """Every panel has ink, and no two texts overlap or leave the figure."""
    canvas = FigureCanvasAgg(figure)
    boxes = []
    with pytest.MonkeyPatch.context() as patch:
        draw = Text.draw

        def record(text, renderer, *args, **options):
            draw(text, renderer, *args, **options)
            if text.get_visible() and text.get_text().strip():
                boxes.append((text.get_text(), text.get_window_extent(renderer)))

        patch.setattr(Text, "draw", record)
        canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3]
    for axes in figure.axes:
        if axes.get_visible():
            x0, y0, x1, y1 = axes.get_window_extent().extents.astype(int)
            assert (pixels[y0:y1, x0:x1] < 250).any(-1).mean() > 0.0005, axes.get_title(loc="left")
    assert len(boxes) > 4
    for what, box in boxes:
        assert box.x0 >= -1, what
        assert box.y0 >= -1, what
        assert box.x1 <= figure.bbox.x1 + 1, what
        assert box.y1 <= figure.bbox.y1 + 1, what
    for (one, box), (other, second) in itertools.combinations(boxes, 2):
        assert not box.padded(-1).overlaps(second.padded(-1)), (one, other)


# Each plot takes axes and returns them


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


# Figures of a run


@pytest.fixture
def trained(data_folder, monkeypatch, capsys):
    """Folder of a short run on small files."""
    monkeypatch.setattr(figures, "TSNE_NODES", 60)

    def train(*args):
        assert run("train", *args, "--quiet", "--data", data_folder, "--out", "run") == 0
        capsys.readouterr()
        return Path("run")

    return train


@pytest.mark.parametrize(
    "args",
    [
        ("cora", "--epochs", 8, "--hidden", 4, "--seeds", 2),
        ("ppi", "--model", "gatv2", "--epochs", 3, "--hidden", 4),
    ],
    ids=["gat", "gatv2-multilabel"],
)
def test_figures(args, trained):
    view = View.of(runs.load_run(trained(*args)))
    for kind, draw in FIGURES.items():
        picture = draw(view, Choice(edges=30 if kind == "tsne" else 0))
        check_page(picture.figure)
        assert "nan" not in picture.words, kind
        assert picture.words.endswith("."), kind
    for layer in view.layers:
        attention = layer.attention
        sums = attention.sum_rows(attention.alpha)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-5)
    share = runs.load_run("run").history["test_score"]
    if view.y.dim() == 1:
        assert view.node_scores()[0][view.test_mask].mean() == pytest.approx(share)


def test_chosen_layer_head_and_nodes(trained):
    view = View.of(runs.load_run(trained("cora", "--epochs", 2, "--hidden", 4)))
    picture = FIGURES["neighbourhood"](view, Choice.of(1, 3, [5, 8]))
    titles = [axes.get_title(loc="left") for axes in picture.figure.axes]
    assert [title.split(":")[0] for title in titles] == ["node 5", "node 8"]
    assert picture.words.startswith("Layer 1, head 3:")
    assert FIGURES["subgraph"](view, Choice.of(2, None)).words.startswith("Layer 2, head 1,")


class Page(html.parser.HTMLParser):
    """What a page shows, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.images, self.loads, self.open = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in ("img", "meta"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(attributes)
        self.loads += [attributes[name] for name in ("src", "href") if name in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_report(trained, capsys):
    folder = trained("cora", "--epochs", 3, "--hidden", 4)
    assert run("report", folder) == 0
    shown = capsys.readouterr()
    assert shown.out == "wrote run/report.html\n"
    steps = [f"[{done}/{len(FIGURES)}] {kind}" for done, kind in enumerate([*FIGURES, "done"])]
    assert shown.err.splitlines() == steps
    text = (folder / "report.html").read_text("utf-8")
    page = Page(text)
    assert len(page.headings) == len(page.images) == len(FIGURES)
    for image in page.images:
        kind, content = image["src"].split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        root = ET.fromstring(base64.b64decode(content))
        assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 20
        assert image["alt"].count(" ") > 5
        assert int(image["width"]) <= 960
    assert all(load.startswith("data:") for load in page.loads)
    assert "nan" not in text.split("<body>")[1].replace(";base64", "").lower().split("data:")[0]
    history = runs.load_run(folder).history
    assert f"{history['test_score']:.2%}" in text


@pytest.fixture
def two_runs(data_folder, capsys):
    """Folders of a GAT of two seeds and a GCN on the same small files."""
    for model, seeds in (("gat", 2), ("gcn", 1)):
        args = ["--model", model, "--seeds", seeds, "--epochs", 4 + seeds, "--hidden", 4]
        assert run("train", "ppi", *args, "--quiet", "--data", data_folder, "--out", model) == 0
    capsys.readouterr()
    return [Path("gat"), Path("gcn")]


def test_curves_of_several_runs(two_runs, capsys):
    picture = Comparison(two_runs).picture()
    check_page(picture.figure)
    lower = picture.figure.axes[1]
    lines = [drawn for drawn in lower.lines if drawn.get_linestyle() != "None"]
    runs_of = [entry for folder in two_runs for entry in runs.read_metrics(folder)["runs"]]
    assert [len(drawn.get_xdata()) for drawn in lines] == [entry["epochs"] for entry in runs_of]
    for drawn, entry in zip(lines, runs_of, strict=True):
        np.testing.assert_allclose(
            drawn.get_ydata(), np.multiply(100, entry["curves"]["val_score"])
        )
    legend = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    assert legend == ["GAT", "GCN"]
    assert run("plot", "curves", *two_runs) == 0
    assert f"curves: {picture.words}" in capsys.readouterr().out
    out = Path("runs/comparison")
    assert {path.name for path in out.iterdir()} == {"curves.png", "curves.svg"}


def test_report_of_several_runs(two_runs, capsys):
    assert run("report", *two_runs) == 0
    assert capsys.readouterr().out == "wrote runs/comparison/report.html\n"
    page = Page(Path("runs/comparison/report.html").read_text("utf-8"))
    assert len(page.images) == 1
    (gat, gcn) = Comparison(two_runs).rows()
    assert gat[:2] == ("gat", "GAT, 3 layers of 4 x 4")
    assert gcn[:2] == ("gcn", "GCN, 3 layers of 4")
    summary = runs.read_metrics("gat")["summary"]
    mean, std = summary["test_score_mean"], summary["test_score_std"]
    assert gat[2:4] == (f"{100 * mean:.2f} ± {100 * std:.2f} %", "2")
    assert "±" not in gcn[2]
    text = Path("runs/comparison/report.html").read_text("utf-8")
    assert all(f">{cell}</t" in text for row in (gat, gcn) for cell in row)


def test_runs_of_one_kind_are_told_apart_and_others_refused(two_runs, trained, capsys):
    Path("again").symlink_to("gat")
    assert Comparison([two_runs[0], Path("again")]).names == ["GAT, gat", "GAT, again"]
    cora = trained("cora", "--epochs", 1)
    for args, message in [
        (("plot", "entropy", *two_runs), "entropy draws one run, got 2; curves takes several"),
        (("plot", "curves", "gat", "gat"), "the same run is named twice"),
        (("plot", "curves", "gat", cora), "on one data set, these are on PPI, Cora"),
        (("report", "gat", "absent"), "absent: not the folder of a run"),
        (("report", *two_runs, "--out", "gat"), "is a folder; --out takes a file"),
        (("plot", "curves", *two_runs, "--layer", 1), "--layer goes with one run, got 2"),
        (("report", *two_runs, "--data", "x"), "--data goes with one run, got 2"),
    ]:
        assert run(*args) == 2, args
        assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_network_without_attention(trained, capsys):
    folder = trained("cora", "--model", "gcn", "--epochs", 2)
    assert run("plot", "entropy", folder) == 2
    assert capsys.readouterr().err == (
        "gatkernels plot: error: run: GCN has no attention to show\n"
    )
    assert run("plot", "all", folder) == 0
    drawn = {path.stem for path in (folder / "plots").iterdir()}
    assert drawn == {"curves", "degrees", "accuracy-by-degree", "tsne"}
    assert run("report", folder) == 0
    text = (folder / "report.html").read_text("utf-8")
    assert len(Page(text).images) == 4
    assert "GCN has no attention to show" in text


def test_plot_writes_png_and_svg(trained, capsys):
    folder = trained("cora", "--epochs", 2, "--hidden", 4)
    assert run("plot", "heads", folder, "--out", "pictures/deep") == 0
    text = capsys.readouterr().out
    assert "heads: Two heads spend" in text
    assert "Attention on same-class" in text or "neighbours differ" not in text
    out = Path("pictures/deep")
    assert (out / "heads.png").read_bytes().startswith(b"\x89PNG")
    assert ET.parse(out / "heads.svg").getroot().tag.endswith("svg")
    first = (out / "heads.svg").read_bytes()
    assert run("plot", "heads", folder, "--out", "pictures/deep") == 0
    assert (out / "heads.svg").read_bytes() == first
    assert {path.name for path in out.iterdir()} == {"heads.png", "heads.svg"}


def test_bad_input_is_one_line(trained, capsys):
    folder = trained("cora", "--epochs", 1, "--hidden", 4)
    Path("file").write_text("")
    for args, message in [
        (("plot", "entropy", "absent"), "absent: not the folder of a run"),
        (("report", "absent"), "absent: not the folder of a run"),
        (("plot", "heads", folder, "--out", "file"), "File exists"),
        (("report", folder, "--out", "file/report.html"), "file"),
        (("report", folder, "--out", folder), "is a folder; --out takes a file"),
        (("plot", "subgraph", folder, "--layer", 3), "--layer must be from 1 to 2, got 3"),
        (("plot", "entropy", folder, "--layer", 99), "--layer must be from 1 to 2, got 99"),
        (("plot", "curves", folder, "--head", 99), "--head must be from 1 to 8 in layer 1, got 99"),
        (("plot", "degrees", folder, "--node", 700), "--node must be from 0 to 699, got 700"),
        (("plot", "subgraph", folder, "--layer", 0), "--layer counts from 1, got 0"),
        (("plot", "subgraph", folder, "--head", 9), "--head must be from 1 to 8 in layer 1, got 9"),
        (("plot", "neighbourhood", folder, "--node", 700), "--node must be from 0 to 699, got 700"),
        (("plot", "tsne", folder, "--edges", -1), "--edges must not be negative, got -1"),
        (("plot", "heads", folder, "--data", "absent"), "no Cora there"),
    ]:
        assert run(*args) == 2, args
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not Path("absent").exists()
    with pytest.raises(SystemExit) as stop:
        run("plot", "pie", folder)
    assert stop.value.code == 2
    assert "invalid choice: 'pie'" in capsys.readouterr().err


def test_broken_weights_are_one_line(trained, capsys):
    folder = trained("cora", "--epochs", 1, "--hidden", 4)
    checkpoint = torch.load(folder / "checkpoint.pt")
    next(iter(checkpoint["state_dict"].values())).fill_(float("nan"))
    torch.save(checkpoint, folder / "checkpoint.pt")
    assert run("report", folder) == 2
    assert capsys.readouterr().err.endswith("run: the network's output is not finite\n")
    (folder / "checkpoint.pt").unlink()
    assert run("plot", "entropy", folder) == 2
    assert "checkpoint.pt: cannot be read" in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == {
        "curves.png", "metrics.json", "state.pt",
    }  # fmt: skip
