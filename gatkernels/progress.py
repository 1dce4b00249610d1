"""What commands show while they work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int) -> Iterator[Callable[[int, str], None]]:
    """A bar of so many steps on stderr; plain lines where that is no terminal.

    Called with how many are done, and what comes next.
    """
    try:
        from rich import progress as bars
        from rich.console import Console
    except ImportError:
        bars = None  # type: ignore[assignment]
    if bars is None or not sys.stderr.isatty():
        shown = ""

        def line(done: int, text: str) -> None:
            nonlocal shown
            if text != shown:
                print(f"[{done}/{total}] {text}", file=sys.stderr, flush=True)
            shown = text

        yield line
        line(total, "done")
        return
    columns = (
        bars.BarColumn(bar_width=24),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("{task.description}"),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, text: bar.update(task, description=text, completed=done)
        bar.update(task, description="done", completed=total)
