"""``gatkernels plot`` and ``gatkernels report``: pictures and a page of one run, or of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from gatkernels import disk
from gatkernels.experiments import page, runs
from gatkernels.experiments.comparison import Comparison
from gatkernels.experiments.figures import FIGURES, NEED_ATTENTION, Choice
from gatkernels.experiments.plots.style import save
from gatkernels.experiments.view import LookError, View
from gatkernels.extras import require
from gatkernels.progress import progress

SUFFIXES = (".png", ".svg")
REPORT_EDGES = 300
COMPARED = Path("runs") / "comparison"  # where pictures of several runs go


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
    out = out or run / "plots"
    _check_folder(out, run)
    view = _open(run, data)
    choice = choice or Choice()
    choice.check(view)
    for name in _kinds(view) if kind == "all" else [kind]:
        picture = FIGURES[name](view, choice)
        draw = partial(save, picture.figure)
        yield name, picture.words, [disk.write(out / f"{name}{end}", draw) for end in SUFFIXES]


def report(run: Path, out: Path | None = None, data: Path | None = None) -> Path:
    """Write all plots of a run as one self-contained HTML page, ``RUN/report.html`` by default.

    Standard error shows how far it is: t-SNE alone takes a quarter of a minute.

    Raises: as :func:`plot`.
    """
    out = _page(out or run / "report.html")
    _check_folder(out.parent, run)
    view = _open(run, data)
    choice = Choice(edges=REPORT_EDGES if view.layers else 0)
    kinds, pictures = _kinds(view), {}
    with progress(len(kinds)) as tell:
        for done, kind in enumerate(kinds):
            tell(done, kind)
            pictures[kind] = FIGURES[kind](view, choice)
    return disk.write(out, lambda part: part.write_text(page.render(view, pictures), "utf-8"))


def plot_several(
    folders: Sequence[Path], kind: str, out: Path | None = None
) -> Iterator[tuple[str, str, list[Path]]]:
    """Draw the curves of several runs in one picture, to ``runs/comparison`` by default.

    Raises: as :func:`plot`.
    """
    if kind != "curves":
        raise LookError(f"{kind} draws one run, got {len(folders)}; curves takes several")
    require("matplotlib", "matplotlib")
    out, picture = out or COMPARED, Comparison(folders).picture()
    draw = partial(save, picture.figure)
    yield kind, picture.words, [disk.write(out / f"{kind}{end}", draw) for end in SUFFIXES]


def report_several(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write one page with the curves and a table of several runs.

    It goes to ``runs/comparison/report.html`` by default. Raises: as :func:`plot`.
    """
    require("matplotlib", "matplotlib")
    out = _page(out or COMPARED / "report.html")
    compared = Comparison(folders)
    return disk.write(out, lambda part: part.write_text(compared.page(), "utf-8"))


def _page(out: Path) -> Path:
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; --out takes a file")
    return out


def _kinds(view: View) -> list[str]:
    """The plots that the network has."""
    return [kind for kind in FIGURES if view.layers or kind not in NEED_ATTENTION]


def _check_folder(folder: Path, run: Path) -> None:
    """Before the work begins. Nothing is created where there is no run."""
    runs.read_metrics(run)
    runs.check_folder(folder)


def _open(run: Path, data: Path | None) -> View:
    require("matplotlib", "matplotlib")
    return View.of(runs.load_run(run, data))
