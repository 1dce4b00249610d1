"""The papers' table: every data set and model over several seeds, beside the published values."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gatkernels import disk
from gatkernels.experiments import jobs, runs
from gatkernels.experiments.presets import PUBLISHED, Preset, get_preset
from gatkernels.experiments.training import Options, RunResult
from gatkernels.extras import require, versions

RESULTS, MARKDOWN, PAGE = "results.json", "results.md", "results.html"
COLUMNS = (
    "data set",
    "model",
    "published",
    "ours",
    "seeds",
    "validation",
    "epochs",
    "ms per epoch",
)


def reproduce(
    cells: Sequence[tuple[str, str]],
    seeds: Sequence[int],
    options: Options,
    out: Path,
    data_dir: Path | None = None,
    *,
    quiet: bool = False,
    resume: bool = False,
) -> bool:
    """Train every (data set, model) with its preset, and write the table after each.

    Args:
        cells: What to train.
        seeds: One run each.
        options: How to train.
        out: Folder of ``results.json``, ``results.md`` and ``results.html``; each cell's own run
            goes to ``out/<data set>-<model>``.
        data_dir: As in :func:`gatkernels.experiments.datasets.load`.
        quiet: No progress bars.
        resume: Keep the cells that an earlier call finished there, those of other data sets, models
            or numbers of seeds too, and go on from where it was.

    Returns:
        Whether Ctrl-C cut it short; what was finished by then is in the table.

    Raises: ValueError, OSError, BackendUnavailable or MissingExtraError about the choices.
    """
    presets = [get_preset(*cell) for cell in cells]  # every name is checked before any training
    runs.check_folder(out)
    for preset in presets if not resume else ():
        jobs.refuse_interrupted(out / f"{preset.dataset}-{preset.model}")
    results: dict[str, Any] = {
        "format": runs.FORMAT,
        "settings": {
            "seeds": list(seeds),
            "backend": options.backend,
            "device": options.device,
            "amp": options.amp,
            "compile": options.compile,
            "threads": torch.get_num_threads(),
        },
        "versions": versions(),
        "machine": runs.machine(),
        "cells": [],
    }
    console = require("rich.console", "rich").Console(highlight=False)
    earlier = _earlier(out) if resume else {}
    asked = {f"{preset.dataset}-{preset.model}": preset for preset in presets}
    results["cells"] = [cell for name, cell in earlier.items() if name not in asked]
    interrupted = False
    for name, preset in asked.items():
        if (cell := earlier.get(name)) is not None and _finished(cell, preset, seeds):
            results["cells"].append(cell)
            continue
        jobs.say(console, f"{name}:")
        job = jobs.prepare(preset, options, out / name, data_dir, quiet=quiet)
        begun = resume and (job.out / runs.STATE).is_file()
        done, interrupted = jobs.execute(replace(job, resume=begun), seeds)
        if done:
            results["cells"].append(_cell(job, done))
            results["settings"]["backend"] = job.options.backend
            write(out, results)
        if interrupted:
            break
    show(console, results)
    if results["cells"]:
        jobs.say(console, f"wrote {RESULTS}, {MARKDOWN}, {PAGE} to {out}")
    return interrupted


def _finished(cell: dict[str, Any], preset: Preset, seeds: Sequence[int]) -> bool:
    """Whether a cell of an earlier table holds all the seeds, trained alike."""
    entries = cell["runs"]
    return (
        cell["config"] == preset.to_dict()
        and [run["seed"] for run in entries] == list(seeds)
        and all(run["stop"] != "interrupted" for run in entries)
    )


def _earlier(out: Path) -> dict[str, Any]:
    """The cells of an earlier table by name. Raises: RunError."""
    path = out / RESULTS
    if not path.is_file():
        return {}
    try:
        cells = json.loads(path.read_text())["cells"]
        return {f"{cell['dataset']['name']}-{cell['model']}": cell for cell in cells}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise runs.RunError(f"{path}: cannot be resumed: {error}") from error


def _cell(job: jobs.Job, done: Sequence[RunResult]) -> dict[str, Any]:
    published = PUBLISHED.get((job.preset.dataset, job.preset.model))
    return {
        "dataset": job.dataset.summary(),
        "model": job.preset.model,
        "config": job.preset.to_dict(),
        "published": None if published is None else published._asdict(),
        "summary": runs.summarise(done),
        "runs": [
            {key: value for key, value in runs.entry(run).items() if key != "curves"}
            for run in done
        ],
    }


def write(out: Path, results: dict[str, Any]) -> None:
    """The three files, each replaced whole."""
    runs.write_json(out / RESULTS, results)
    disk.write(out / MARKDOWN, lambda path: path.write_text(markdown(results)))
    disk.write(out / PAGE, lambda path: path.write_text(page(results)))


def rows(results: dict[str, Any]) -> list[list[str]]:
    """The table's cells as text, under ``COLUMNS``."""
    found = []
    for cell in results["cells"]:
        summary, published = cell["summary"], cell["published"]
        epochs = [run["epochs"] for run in cell["runs"]]
        found.append(
            [
                cell["dataset"]["title"] + ("" if cell["dataset"]["public_split"] else " (*)"),
                cell["model"],
                "" if published is None else _mean(published["mean"], published["std"]),
                _mean(100 * summary["test_score_mean"], _percent(summary["test_score_std"]))
                + verdict(summary, published),
                str(summary["seeds"]),
                f"{100 * summary['val_score_mean']:.1f}",
                f"{sum(epochs) / len(epochs):.0f}",
                f"{summary['ms_per_epoch']:.1f}",
            ]
        )
    return found


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _mean(mean: float, std: float | None) -> str:
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


def verdict(summary: dict[str, Any], published: dict[str, Any] | None) -> str:
    """How far the mean lies from the published one, in published standard deviations."""
    if published is None:
        return ""
    gap = 100 * summary["test_score_mean"] - published["mean"]
    if published["std"] is None:
        return f" ({gap:+.1f})"
    inside = abs(gap) <= published["std"] or math.isclose(abs(gap), published["std"])
    return f" ({gap:+.1f}, {'within' if inside else 'outside'} 1 std)"


def notes(results: dict[str, Any]) -> list[str]:
    """What a reader must know to read the table."""
    settings, versions = results["settings"], results["versions"]
    lines = [
        "Test scores in per cent, mean and sample standard deviation over the seeds: accuracy, on "
        "PPI micro-F1 over all nodes. The weights of the best validation epoch are tested, once; "
        "hyper-parameters are the presets', the same for every seed.",
        f"{settings['threads']} threads, backend {settings['backend']}, {results['machine']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
    ]
    named = sorted({c["published"]["source"] for c in results["cells"] if c["published"]})
    if named:
        lines.append("Published values: " + "; ".join(named) + ".")
    exact = [c for c in results["cells"] if c["summary"]["test_score_exact_mean"] is not None]
    lines += [
        f"{c['dataset']['title']}, {c['model']}: {100 * c['summary']['test_score_exact_mean']:.2f} "
        "on the rows whose labels are exact."
        for c in exact
    ]
    if not all(cell["dataset"]["public_split"] for cell in results["cells"]):
        lines.append("(*) A split of our own, drawn anew for each seed.")
    return lines


def markdown(results: dict[str, Any]) -> str:
    table = [list(COLUMNS), ["---", "---", *["---:"] * (len(COLUMNS) - 2)], *rows(results)]
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join(["# Reproduced results", "", *lines, "", *_spaced(notes(results))])


def _spaced(lines: Sequence[str]) -> list[str]:
    return [part for line in lines for part in (line, "")]


STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
padding: 0 1rem; color: #222; background: #fff } table { border-collapse: collapse }
th, td { padding: .35rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left } p { color: #555 }"""


def page(results: dict[str, Any]) -> str:
    """A self-contained HTML page."""

    def line(tag: str, values: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(v)}</{tag}>" for v in values) + "</tr>"

    body = [line("th", COLUMNS), *(line("td", row) for row in rows(results))]
    text = "\n".join(f"<p>{html.escape(note)}</p>" for note in notes(results))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Reproduced results</title><style>{STYLE}</style></head>\n<body>"
        "<h1>Reproduced results</h1>\n<table>\n" + "\n".join(body) + f"\n</table>\n{text}\n"
        "</body></html>\n"
    )


def show(console: Any, results: dict[str, Any]) -> None:
    table = require("rich.table", "rich").Table()
    for place, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if place < 2 else "right")
    for row in rows(results):
        table.add_row(*row)
    console.print(table)
