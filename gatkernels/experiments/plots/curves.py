"""Loss and score over the epochs of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gatkernels.experiments.plots.style import (
    BLUE,
    GREY,
    VERMILION,
    axes_or_new,
    new_figure,
    plain,
    title,
)

# In grey the widths differ.
TRAIN = {"color": BLUE, "linewidth": 1.2}
VALIDATION = {"color": VERMILION, "linewidth": 2.0}
FAINT = {"color": VERMILION, "linewidth": 0.7, "alpha": 0.4}


def loss(metrics: dict[str, Any], axes: Any = None) -> Any:
    """Training and validation loss of ``metrics.json``'s contents over the epochs.

    The run whose weights the checkpoint holds is drawn in full with its best epoch marked, the
    validation curves of the other seeds faintly.
    """
    axes = axes_or_new(axes)
    _draw(metrics, "loss", 1.0, axes, train="training, with dropout")
    if len(metrics["runs"]) > 1:
        axes.plot([], [], label="validation, other seeds", **FAINT)
    axes.set(xlabel="epoch", ylabel="cross-entropy")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    return axes


def score(metrics: dict[str, Any], axes: Any = None) -> Any:
    """Training and validation score over the epochs, in per cent; otherwise as :func:`loss`."""
    axes = axes_or_new(axes)
    run = _draw(metrics, "score", 100.0, axes, train="training")
    best = run["best_epoch"]
    axes.plot(best, 100 * run["val_score"], "o", color=VALIDATION["color"], markersize=5)
    right = best > 0.6 * run["epochs"]
    axes.annotate(
        f"epoch {best} kept: validation {run['val_score']:.1%}, test {run['test_score']:.1%}",
        (best, 0.06),
        xycoords=("data", "axes fraction"),
        xytext=(-6 if right else 6, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        fontsize=8,
        color=GREY,
    )
    axes.set(xlabel="epoch", ylabel=f"{metrics['dataset']['metric']} (%)")
    return axes


def curves(metrics: dict[str, Any], path: Path | None = None) -> Any:
    """Figure of :func:`loss` above :func:`score`; saved to ``path`` if given."""
    figure = new_figure(7.2, 5.6)
    upper, lower = figure.subplots(2, 1, sharex=True)
    loss(metrics, upper)
    score(metrics, lower)
    upper.set_xlabel("")
    name = model_title(metrics["config"]["model"])
    title(upper, f"{name} on {metrics['dataset']['title']}, seed {metrics['checkpoint_seed']}")
    if path is not None:
        figure.savefig(path)
    return figure


def model_title(model: str) -> str:
    """A model's name as the papers write it: GAT, GATv2, GCN, MLP."""
    return model.upper().replace("V", "v")


def _draw(
    metrics: dict[str, Any], quantity: str, scale: float, axes: Any, train: str
) -> dict[str, Any]:
    """Draw the curves of one quantity; return the entry of the run that was kept."""
    kept = metrics["checkpoint_seed"]
    run: dict[str, Any] = next(run for run in metrics["runs"] if run["seed"] == kept)
    for other in metrics["runs"]:
        if other is not run:
            axes.plot(*line(other, f"val_{quantity}", scale), **FAINT)
    dots = {"marker": "o", "markersize": 4} if run["epochs"] == 1 else {}  # one point is no line
    axes.plot(*line(run, f"train_{quantity}", scale), label=train, **TRAIN, **dots)
    axes.plot(*line(run, f"val_{quantity}", scale), label="validation", **VALIDATION, **dots)
    axes.axvline(run["best_epoch"], color=GREY, linestyle="--", linewidth=1.0)
    axes.margins(x=0.01)
    plain(axes)
    return run


def line(run: dict[str, Any], name: str, scale: float) -> tuple[range, list[float]]:
    """Epochs, and the run's curve of that name times ``scale``."""
    values = [float("nan") if value is None else scale * value for value in run["curves"][name]]
    return range(1, len(values) + 1), values
