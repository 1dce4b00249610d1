"""``gatkernels plot`` and ``gatkernels report``: pictures and a page of a run's folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from gatkernels.experiments import page, runs
from gatkernels.experiments.figures import FIGURES, NEED_ATTENTION, Choice
from gatkernels.experiments.plots.style import save
from gatkernels.experiments.view import View
from gatkernels.extras import require

SUFFIXES = (".png", ".svg")
REPORT_EDGES = 300


def plot(
    run: Path,
    kind: str,
    out: Path | None = None,
    data: Path | None = None,
    choice: Choice | None = None,
) -> Iterator[tuple[str, str, list[Path]]]:
    """Draw one kind of plot of the run in folder ``run``, or "all" that it has, to ``out``.

    ``out`` is by default the run's folder ``plots``. Yields each plot's kind, what it says, and
    the files written, a PNG and an SVG.

    Raises: RunError, DatasetError, LookError, MissingExtraError, OSError.
    """
    out = _writable(out or run / "plots", run)
    view = _open(run, data)
    choice = choice or Choice()
    choice.check(view)
    for name in _kinds(view) if kind == "all" else [kind]:
        picture = FIGURES[name](view, choice)
        draw = partial(save, picture.figure)
        yield name, picture.words, [runs.write(out / f"{name}{end}", draw) for end in SUFFIXES]


def report(run: Path, out: Path | None = None, data: Path | None = None) -> Path:
    """Write all plots of a run as one self-contained HTML page, ``RUN/report.html`` by default.

    Raises: as :func:`plot`.
    """
    out = out or run / "report.html"
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; --out takes a file")
    _writable(out.parent, run)
    view = _open(run, data)
    choice = Choice(edges=REPORT_EDGES if view.layers else 0)
    pictures = {kind: FIGURES[kind](view, choice) for kind in _kinds(view)}
    return runs.write(out, lambda part: part.write_text(page.render(view, pictures), "utf-8"))


def _kinds(view: View) -> list[str]:
    """The plots that the network has."""
    return [kind for kind in FIGURES if view.layers or kind not in NEED_ATTENTION]


def _writable(folder: Path, run: Path) -> Path:
    """Create ``folder`` before the work begins. Nothing is created where there is no run."""
    runs.read_metrics(run)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"the folder {folder} is not writable")
    return folder


def _open(run: Path, data: Path | None) -> View:
    require("matplotlib", "matplotlib")
    return View.of(runs.load_run(run, data))
