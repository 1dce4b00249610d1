"""A run's plots as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gatkernels.experiments.attention import entropy, homophily, uniform_entropy
from gatkernels.experiments.figures import Picture
from gatkernels.experiments.plots.curves import model_title
from gatkernels.experiments.plots.style import save
from gatkernels.experiments.sources import TITLES
from gatkernels.experiments.view import View, describe, layer_name

# Heading of each figure, and how to read it.
SECTIONS = {
    "curves": (
        "Training",
        "Loss and score of each epoch. The dashed line marks the epoch whose weights were kept: "
        "the one that was best on the validation nodes. The test nodes were looked at once, with "
        "those weights.",
    ),
    "degrees": (
        "How many neighbours a node has",
        "A node attends to its neighbours and to itself, so with few neighbours there is little "
        "to choose from.",
    ),
    "accuracy-by-degree": (
        "Who is classified well",
        "The score of test nodes with few and with many neighbours. Where the intervals overlap, "
        "the difference may be chance.",
    ),
    "tsne": (
        "What the network made of the nodes",
        "What the last layer sees of each node, laid out in the plane by t-SNE: on the left with "
        "the weights training started from, on the right with the trained ones. Even random "
        "weights average over neighbours, which is why the left side is no noise. Distances "
        "between far groups mean nothing.",
    ),
    "entropy": (
        "Does attention choose?",
        "Entropy of a node's attention: 0 bits if all of it lies on one neighbour, log2 of their "
        "number if all get the same. Filled: what uniform attention would give the same nodes. "
        "Where the line follows the filled bars, the head averages, as a graph convolution does; "
        "where it lies to their left, the head chooses.",
    ),
    "heads": (
        "How alike the heads are, and whether they prefer their like",
        "Left: the share of attention that two heads spend on the same edges, averaged over the "
        "nodes; the last row and column compare with uniform attention. Right: how much attention "
        "goes to neighbours like the node itself, over the nodes whose neighbours differ; the "
        "numbers are the difference to uniform attention and its 95 % interval.",
    ),
    "neighbourhood": (
        "A node and its neighbours",
        "The nodes with most neighbours, then random ones. Edges are as wide as the attention "
        "they get, the ring is the node's attention to itself, and the widest line is equally "
        "wide in each picture. Shown is the head with the lowest entropy.",
    ),
    "subgraph": (
        "A part of the graph",
        "Each link is drawn in two halves; the half next to a node is coloured by the attention "
        "this node pays to the other one. Left the attention itself, which falls with the number "
        "of neighbours; right what is left when that is divided out.",
    ),
}

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 60rem;
  padding: 0 1rem; background: #fff; }
h1 { font-size: 1.7rem; margin-bottom: .3rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .3rem; }
p { max-width: 46rem; margin: .5rem 0; }
figure { margin: 1rem 0 0; }
img { max-width: 100%; height: auto; }
.says { font-weight: 600; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid #ddd;
  vertical-align: top; }
th { font-weight: 600; }
tr th:first-child { white-space: nowrap; }
td.number, th.number { text-align: right; }
"""


def render(view: View, pictures: dict[str, Picture]) -> str:
    """The page, in the order of ``pictures``."""
    run = view.run
    name = f"{model_title(run.preset.model)} on {TITLES[run.preset.dataset]}"
    facts = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>"
        for key, value in describe(run).items()
    )
    parts = [f"<h1>{html.escape(name)}</h1>", f"<table>{facts}</table>"]
    if run.dataset.node_ptr is not None:
        parts.append(f"<p>The plots show the test graphs, {view.num_nodes:,} nodes.</p>")
    for kind, picture in pictures.items():
        heading, reading = SECTIONS[kind]
        parts.append(f'<section id="{kind}"><h2>{html.escape(heading)}</h2>')
        parts.append(f"<p>{html.escape(reading)}</p>")
        parts.append(f'<p class="says">{html.escape(picture.words)}</p>')
        parts.append(figure_html(picture, heading))
        if kind == "heads":
            parts.append(_layers(view))
        parts.append("</section>")
    if not view.layers:
        parts.append(f"<p>{model_title(run.preset.model)} has no attention to show.</p>")
    return document(name, "\n".join(parts))


def document(name: str, body: str) -> str:
    """A whole page of that title."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}'
        f'</title><meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f"<body>\n{body}\n</body></html>\n"
    )


def figure_html(picture: Picture, heading: str) -> str:
    """The picture inside the page, at its own size in inches."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        save(picture.figure, path)
        content = base64.b64encode(path.read_bytes()).decode()
    width, height = (round(96 * inches) for inches in picture.figure.get_size_inches())
    alt = html.escape(f"{heading}: {picture.words}", quote=True)
    source = f"data:image/svg+xml;base64,{content}"
    return f'<figure><img src="{source}" width="{width}" height="{height}" alt="{alt}"></figure>'


def _layers(view: View) -> str:
    """A table of the layers' attention."""
    columns = ("layer", "heads", "entropy, bits", "uniform, bits", "attention on like neighbours",
               "uniform", "sum of attention, at most off by")  # fmt: skip
    rows = []
    for k, attention in enumerate(view.attentions):
        found = homophily(attention, view.y)
        chooses = attention.degrees() >= 2
        sums = attention.sum_rows(attention.alpha)[attention.degrees() > 0]
        rows.append(
            (
                layer_name(k),
                str(attention.heads),
                f"{entropy(attention)[chooses].mean():.3f}",
                f"{uniform_entropy(attention)[chooses].mean():.3f}",
                f"{100 * found.attention.mean():.2f} %",
                f"{100 * found.uniform:.2f} %",
                f"{(sums - 1).abs().max():.0e}",
            )
        )
    return table_html(columns, rows)


def table_html(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names its rows."""
    lines = [_row(columns, "th"), *(_row(row, "td") for row in rows)]
    return f"<table>{''.join(lines)}</table>"


def _row(cells: Sequence[str], tag: str) -> str:
    first, *rest = (html.escape(cell) for cell in cells)
    numbers = "".join(f'<{tag} class="number">{cell}</{tag}>' for cell in rest)
    return f"<tr><th>{first}</th>{numbers}</tr>"
