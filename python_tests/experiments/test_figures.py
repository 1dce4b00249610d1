"""The figures of runs: nothing is empty, no label lies on another, pages need no other file."""

import base64
import html.parser
import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from gatkernels import cli
from gatkernels.experiments import figures, runs
from gatkernels.experiments.comparison import Comparison
from gatkernels.experiments.figures import FIGURES, Choice
from gatkernels.experiments.view import View


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
    assert gcn[:2] == ("gcn", "GCN, 2 layers of 4")
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
