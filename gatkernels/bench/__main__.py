"""`python -m gatkernels.bench`: time the layer against its peers and print one table."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from gatkernels.bench import report as reporting
from gatkernels.bench.epoch import epoch_ratio
from gatkernels.bench.graphs import CASES
from gatkernels.bench.peers import PEERS, find
from gatkernels.bench.run import graph_build, run_case


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A function that shows what is going on, on stderr."""
    try:
        from rich.console import Console
    except ImportError:
        Console = None  # type: ignore[assignment, misc]
    if Console is not None and sys.stderr.isatty():
        with Console(stderr=True).status("") as status:
            yield lambda text: status.update(text)
        return
    shown = set()

    def line(text: str) -> None:
        if text not in shown:
            print(text, file=sys.stderr, flush=True)
        shown.add(text)

    yield line


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="python -m gatkernels.bench", description=__doc__)
    parse.add_argument("--graphs", nargs="+", choices=list(CASES), default=list(CASES))
    parse.add_argument(
        "--peers",
        nargs="+",
        default=list(PEERS),
        metavar="PEER",
        help=f"of {', '.join(PEERS)}, or package.module:Class",
    )
    parse.add_argument("--rounds", type=int, help="by default as many as take half a minute")
    parse.add_argument("--threads", type=int, default=torch.get_num_threads())
    parse.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parse.add_argument("--no-epoch", action="store_true", help="leave the training epoch out")
    parse.add_argument("--graph-build", action="store_true", help="time building graphs, no layers")
    parse.add_argument(
        "--json",
        type=Path,
        default=Path("runs/bench/results.json"),
        help="where results go, Markdown beside it (%(default)s)",
    )
    return parse


def main(arguments: Sequence[str] | None = None) -> int:
    parse = parser()
    options = parse.parse_args(arguments)
    if options.threads < 1:
        parse.error("--threads must be at least 1")
    if options.rounds is not None and options.rounds < 1:
        parse.error("--rounds must be at least 1")
    try:
        peers = [find(name) for name in options.peers]
    except (KeyError, ImportError, AttributeError) as error:
        parse.error(str(error.args[0]))
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)
    settings = {key: str(value) if key == "json" else value for key, value in vars(options).items()}
    report = reporting.Report(reporting.environment(), settings)
    with progress() as tick:
        if options.graph_build:
            report.builds = graph_build(tick=tick)
        else:
            for name in options.graphs:
                report.cases.append(
                    run_case(
                        name,
                        peers,
                        rounds=options.rounds,
                        memory=not options.no_memory,
                        tick=tick,
                    )
                )
            if not options.no_epoch:
                report.epoch = epoch_ratio(tick=tick)
    reporting.show(report)
    reporting.write(report, options.json)
    print(f"written to {options.json} and {options.json.with_suffix('.md')}")
    failed = any(peer.status == "FAIL" for case in report.cases for peer in case.peers)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
