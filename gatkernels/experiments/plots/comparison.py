"""Several runs on one data set in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gatkernels.experiments.plots.curves import line
from gatkernels.experiments.plots.style import CLASS_COLOURS, new_figure, plain, title

DASHES = ("-", "--", ":")  # a second and third round of the colours


def comparison(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> Any:
    """Figure of the validation losses above the validation scores of several runs.

    Of each run the seed whose weights its checkpoint holds is drawn in full, its kept epoch as a
    dot, the other seeds faintly in the same colour.

    Args:
        runs: Contents of ``metrics.json``, of trainings on one data set.
        names: Of the runs, for the legend.
    """
    figure = new_figure(7.2, 5.6)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for place, (metrics, name) in enumerate(zip(runs, names, strict=True)):
        turn, colour = divmod(place, len(CLASS_COLOURS))
        look = {"color": CLASS_COLOURS[colour], "linestyle": DASHES[turn % len(DASHES)]}
        for run in metrics["runs"]:
            kept = run["seed"] == metrics["checkpoint_seed"]
            width = {"linewidth": 1.8} if kept else {"linewidth": 0.7, "alpha": 0.4}
            upper.plot(*line(run, "val_loss", 1.0), **look, **width)
            lower.plot(
                *line(run, "val_score", 100.0), **look, **width, label=name if kept else None
            )
            if kept:
                best = run["best_epoch"], 100.0 * run["val_score"]
                lower.plot(*best, "o", color=look["color"], markersize=5)
    for axes in (upper, lower):
        axes.margins(x=0.01)
        plain(axes)
    data = runs[0]["dataset"]
    upper.set(ylabel="validation cross-entropy")
    upper.set_ylim(bottom=0)
    lower.set(xlabel="epoch", ylabel=f"validation {data['metric']} (%)")
    title(upper, data["title"])
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return figure
