"""Figures of an experiment, drawn without pyplot, so that no display is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gatkernels.experiments import require

# Okabe and Ito's palette, told apart with any colour vision; in grey the widths differ.
TRAIN = {"color": "#0072B2", "linewidth": 1.2}
VALIDATION = {"color": "#D55E00", "linewidth": 2.0}
FAINT = {"linewidth": 0.7, "alpha": 0.4}
GREY = "#555555"


def curves(metrics: dict[str, Any], path: Path | None = None) -> Any:
    """Loss and accuracy over the epochs of ``metrics.json``'s contents.

    The run whose weights the checkpoint holds is drawn in full with its best epoch marked, the
    validation curves of the other seeds faintly. Returns the matplotlib figure; saves it to
    ``path`` if given.
    """
    figure = require("matplotlib.figure", "matplotlib").Figure(
        figsize=(7.2, 5.6), dpi=150, layout="constrained"
    )
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    kept = metrics["checkpoint_seed"]
    run = next(run for run in metrics["runs"] if run["seed"] == kept)
    others = [other for other in metrics["runs"] if other is not run]
    for axes, quantity, scale in ((loss, "loss", 1.0), (accuracy, "score", 100.0)):
        for other in others:
            axes.plot(*_line(other, f"val_{quantity}", scale), color=VALIDATION["color"], **FAINT)
        label = "training, with dropout" if quantity == "loss" else "training"
        axes.plot(*_line(run, f"train_{quantity}", scale), label=label, **TRAIN)
        axes.plot(*_line(run, f"val_{quantity}", scale), label="validation", **VALIDATION)
        axes.axvline(run["best_epoch"], color=GREY, linestyle="--", linewidth=1.0)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    if others:
        loss.plot([], [], color=VALIDATION["color"], label="validation, other seeds", **FAINT)
    best = run["best_epoch"]
    accuracy.plot(best, 100 * run["val_score"], "o", color=VALIDATION["color"], markersize=5)
    right = best > 0.6 * run["epochs"]
    accuracy.annotate(
        f"epoch {best} kept: validation {run['val_score']:.1%}, test {run['test_score']:.1%}",
        (best, 0.06),
        xycoords=("data", "axes fraction"),
        xytext=(-6 if right else 6, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        fontsize=9,
        color=GREY,
    )
    loss.set_ylabel("cross-entropy")
    loss.set_ylim(bottom=0)
    accuracy.set_ylabel(f"{metrics['dataset']['metric']} (%)")
    accuracy.set_xlabel("epoch")
    loss.legend(frameon=False, fontsize=9, loc="upper right")
    loss.set_title(
        f"{metrics['config']['model']} on {metrics['dataset']['title']}, seed {kept}",
        loc="left",
        fontsize=11,
    )
    if path is not None:
        figure.savefig(path)
    return figure


def _line(run: dict[str, Any], name: str, scale: float) -> tuple[range, list[float]]:
    values = [float("nan") if value is None else scale * value for value in run["curves"][name]]
    return range(1, len(values) + 1), values
