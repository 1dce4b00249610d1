"""The command line: ``gatkernels train | partition | bench | verify | fuzz | info | ...``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
DEMO_RUN = Path("runs/demo")  # no run of `train`


class UsageError(Exception):
    """Something the user can put right; printed as one line."""


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, each of the command that it is about."""

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        found, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def expected_errors() -> tuple[type[Exception], ...]:
    """Those of getting ready."""
    from gatkernels import BackendUnavailable
    from gatkernels.extras import MissingExtraError

    return ValueError, OSError, BackendUnavailable, MissingExtraError


@contextmanager
def usage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Errors about the user's choices become one line: those of getting ready, or ``kinds``."""
    expected = kinds or expected_errors()
    try:
        yield
    except expected as error:
        raise UsageError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser(argv).parse_args(argv)
    try:
        status: int = args.command(args)
        return status
    except UsageError as error:
        message = " ".join(str(error).split())
        print(f"gatkernels {args.name}: error: {message}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The options of the command that ``argv`` names, so that no other's modules are loaded."""
    from gatkernels import __version__

    parser = Parser(prog="gatkernels", description="Fused graph attention for PyTorch.")
    parser.add_argument("--version", action="version", version=f"gatkernels {__version__}")
    parsers = parser.add_subparsers(dest="name", metavar="command", required=True)
    for name, command in COMMANDS.items():
        added = parsers.add_parser(name, help=command.help)
        if name in argv:
            command.options(added)
            added.set_defaults(command=command.run)
    return parser


def _train_options(train: argparse.ArgumentParser) -> None:
    from gatkernels.experiments.presets import DATASETS, MODELS, preset_options

    train.add_argument("dataset", help=", ".join(DATASETS))
    train.add_argument("--model", default="gat", help=f"{', '.join(MODELS)} (gat)")
    train.add_argument("--seeds", type=int, default=1, metavar="N", help="number of runs (1)")
    train.add_argument("--seed", type=int, default=0, help="seed of the first run (0)")
    _run_options(train)
    train.add_argument("--resume", action="store_true", help="go on from the output folder's state")
    train.add_argument("--tensorboard", action="store_true", help="log to DIR/tensorboard")
    train.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    train.add_argument("--compile", action="store_true", help="torch.compile the network")
    several = train.add_argument_group("several processes (torchrun -m gatkernels train ...)")
    several.add_argument(
        "--partition", choices=("range", "metis"), default="range", help="of nodes (range)"
    )
    several.add_argument(
        "--exchange", choices=("auto", "halo", "heads"), default="auto", help="(auto)"
    )
    preset = train.add_argument_group("hyper-parameters (default: the paper's for the data set)")
    for option in preset_options():
        flag, text = "--" + option.name.replace("_", "-"), option.metadata["help"]
        if isinstance(option.default, bool):
            preset.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=None, help=text
            )
        else:
            preset.add_argument(flag, type=type(option.default), help=text)


def _plot_options(plot: argparse.ArgumentParser) -> None:
    from gatkernels.experiments.figures import FIGURES

    plot.add_argument(
        "kind", choices=[*FIGURES, "all"], metavar="KIND", help=f"{', '.join(FIGURES)} or all"
    )
    _look_options(plot, "output folder (RUN/plots; of several runs runs/comparison)")
    plot.add_argument("--layer", type=int, help="from 1 (that of the most selective head)")
    plot.add_argument("--head", type=int, help="from 1 (the most selective one)")
    plot.add_argument(
        "--node",
        type=int,
        action="append",
        default=[],
        metavar="N",
        help="node to draw, from 0; may be repeated",
    )
    plot.add_argument(
        "--edges",
        type=int,
        default=0,
        metavar="N",
        help="draw the N strongest attention edges over the t-SNE",
    )


def _report_options(report: argparse.ArgumentParser) -> None:
    _look_options(
        report, "HTML file to write (RUN/report.html; of several runs runs/comparison/report.html)"
    )


def _look_options(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument(
        "run", type=Path, nargs="+", metavar="RUN", help="folder gatkernels train wrote"
    )
    parser.add_argument("--out", type=Path, metavar="PATH", help=out)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the raw data files")


def _reproduce_options(table: argparse.ArgumentParser) -> None:
    from gatkernels.experiments.presets import DATASETS, MODELS, PUBLISHED

    published = [name for name in MODELS if any(model == name for _, model in PUBLISHED)]
    citation = ["cora", "citeseer", "pubmed"]
    table.add_argument(
        "--datasets", nargs="+", default=citation, metavar="NAME", help=", ".join(DATASETS)
    )
    table.add_argument(
        "--models", nargs="+", default=published, metavar="NAME", help=", ".join(MODELS)
    )
    table.add_argument("--seeds", type=int, default=10, metavar="N", help="runs of each (10)")
    table.add_argument("--seed", type=int, default=0, help="seed of the first run (0)")
    _run_options(table, "runs/reproduce")
    table.add_argument("--resume", action="store_true", help="go on with an interrupted table")


def _run_options(parser: argparse.ArgumentParser, out: str = "runs/DATASET-MODEL") -> None:
    parser.add_argument("--backend", default="auto", help="auto, or one of gatkernels info (auto)")
    parser.add_argument("--device", default="cpu", help="torch device (cpu)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the raw data files")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"output folder ({out})")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _demo_options(demo: argparse.ArgumentParser) -> None:
    _run_options(demo, str(DEMO_RUN))


def _bench_options(bench: argparse.ArgumentParser) -> None:
    from gatkernels.bench import cli

    cli.add_arguments(bench)


def _partition_options(partition: argparse.ArgumentParser) -> None:
    from gatkernels.distributed import command

    command.add_arguments(partition)


def _verify_options(verify: argparse.ArgumentParser) -> None:
    verify.add_argument("--device", default="cpu", help="torch device (cpu)")
    verify.add_argument(
        "--backend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="check these alone (every one that can run)",
    )


def _fuzz_options(fuzz: argparse.ArgumentParser) -> None:
    fuzz.add_argument("--cases", type=int, metavar="N", help="how many (2000)")
    fuzz.add_argument("--minutes", type=float, metavar="M", help="or for how long")
    fuzz.add_argument("--jobs", type=int, default=1, metavar="N", help="processes side by side (1)")
    fuzz.add_argument("--backend", default="auto", help="auto, or one of gatkernels info (auto)")
    fuzz.add_argument("--device", default="cpu", help="torch device (cpu)")
    fuzz.add_argument("--seed", type=int, default=0, help="the same seed, the same cases (0)")


def _train(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from gatkernels.experiments import jobs, runs
    from gatkernels.experiments.presets import check_options, get_preset, preset_options
    from gatkernels.experiments.training import Options
    from gatkernels.experiments.world import joined
    from gatkernels.extras import MissingExtraError

    with joined(args.device) as world:
        known = (*expected_errors(), runs.RunError)
        with usage_errors(*known), world.together("train", *known), world.in_turn():
            chosen = {option.name: getattr(args, option.name) for option in preset_options()}
            preset = get_preset(args.dataset, args.model).with_options(**chosen)
            check_options(
                args.dataset,
                args.model,
                [name for name, value in chosen.items() if value is not None],
            )
            seeds = jobs.seed_range(args.seed, args.seeds)
            options = Options(args.device, args.backend, args.amp, args.compile)
            options = replace(options, partition=args.partition, exchange=args.exchange)
            job = jobs.prepare(preset, options, args.out, args.data, quiet=args.quiet, world=world)
            job = replace(job, tensorboard=args.tensorboard, resume=args.resume)
            if not (args.resume or world.restarts):
                jobs.refuse_interrupted(job.out)
        with usage_errors(runs.RunError, OSError, MissingExtraError):
            _, interrupted = jobs.execute(job, seeds)
    return _ended(interrupted, (job.out / runs.STATE).is_file())


def _ended(interrupted: bool, resumable: bool = True) -> int:
    if interrupted and resumable:
        print("the same command with --resume goes on from there")
    return EXIT_INTERRUPTED if interrupted else 0


def _reproduce(args: argparse.Namespace) -> int:
    from gatkernels.experiments import jobs, reproduce
    from gatkernels.experiments.training import Options
    from gatkernels.experiments.world import joined

    with joined("cpu") as world, world.together("reproduce", ValueError):
        if world.size > 1:
            raise ValueError("it runs in one process; gatkernels train takes several (torchrun)")
    with usage_errors():
        cells = [(dataset, model) for dataset in args.datasets for model in args.models]
        interrupted = reproduce.reproduce(
            cells,
            jobs.seed_range(args.seed, args.seeds),
            Options(args.device, args.backend),
            args.out or Path("runs/reproduce"),
            args.data,
            quiet=args.quiet,
            resume=args.resume,
        )
    return _ended(interrupted)


def _plot(args: argparse.Namespace) -> int:
    from gatkernels.experiments import look
    from gatkernels.experiments.figures import Choice

    with usage_errors():
        choice = Choice.of(args.layer, args.head, args.node, args.edges)
        if len(args.run) > 1:
            _of_one_run(args, "data", "layer", "head", "node", "edges")
            drawn = look.plot_several(args.run, args.kind, args.out)
        else:
            drawn = look.plot(args.run[0], args.kind, args.out, args.data, choice)
        for kind, words, paths in drawn:
            print(f"{kind}: {words}")
            print(f"  wrote {', '.join(str(path) for path in paths)}", flush=True)
    return 0


def _of_one_run(args: argparse.Namespace, *names: str) -> None:
    """Raises: ValueError for an option that says nothing about several runs."""
    for name in names:
        if getattr(args, name):
            raise ValueError(f"--{name} goes with one run, got {len(args.run)}")


def _report(args: argparse.Namespace) -> int:
    from gatkernels.experiments import look

    with usage_errors():
        if len(args.run) > 1:
            _of_one_run(args, "data")
            print(f"wrote {look.report_several(args.run, args.out)}")
        else:
            print(f"wrote {look.report(args.run[0], args.out, args.data)}")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from gatkernels.experiments import jobs
    from gatkernels.experiments.presets import get_preset
    from gatkernels.experiments.training import Options

    preset, out = get_preset("cora"), args.out or DEMO_RUN
    with usage_errors():
        options = Options(args.device, args.backend)
        job = jobs.prepare(preset, options, out, args.data, quiet=args.quiet, generate=True)
    with usage_errors(OSError):
        _, interrupted = jobs.execute(job, range(1))
    if interrupted:
        return EXIT_INTERRUPTED
    from gatkernels.experiments.demo import print_comparison

    return 0 if print_comparison(job.console, job.dataset) else 1


def _bench(args: argparse.Namespace) -> int:
    from gatkernels.bench import cli

    with usage_errors():
        if args.compare and not args.targets:
            return cli.show_comparison(*args.compare)
        job = cli.prepare(args)
    return cli.execute(job)


def _partition(args: argparse.Namespace) -> int:
    from gatkernels.distributed import command
    from gatkernels.extras import MissingExtraError

    ended_as_by_ctrl_c()
    with usage_errors(TypeError, ValueError, OSError, MissingExtraError):
        return command.run(args)


def ended_as_by_ctrl_c() -> None:
    """SIGTERM cleans up, too."""
    with suppress(ValueError):  # only the main thread may handle signals
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _verify(args: argparse.Namespace) -> int:
    import torch

    from gatkernels import backends, verify
    from gatkernels.ops import checks

    with usage_errors():
        device = checks.usable_device(args.device)
        case = backends.Case(device, torch.float32)
        names = [backends.select("--backend", name, case) for name in args.backend]
    failed = 0
    print(f"{'backend':<10} {'check':<28} {'worst error / allowed':>22}  result")
    for check in verify.run(device, names):
        failed += not check.passed
        worst, result = f"{check.worst:.2f}", "pass" if check.passed else "FAIL"
        print(f"{check.backend:<10} {check.name:<28} {worst:>22}  {result}", flush=True)
    print(f"{failed} checks failed" if failed else "all checks passed")
    return 1 if failed else 0


def _fuzz(args: argparse.Namespace) -> int:
    from gatkernels.fuzz import command

    with usage_errors():
        job = command.prepare(
            args.backend, args.device, args.cases, args.minutes, args.seed, args.jobs
        )
    return job.execute()


def _info(args: argparse.Namespace) -> int:
    import torch

    from gatkernels import backends
    from gatkernels.backends import Case
    from gatkernels.extras import versions

    for package, version in versions().items():
        print(f"{package:<16} {version}")
    print(f"{'threads':<16} {torch.get_num_threads()}")
    print(f"{'instruction set':<16} {backends.isa()}")
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        print(f"backends, for float32 on {device}:")
        for backend, reason in backends.explain(Case(torch.device(device), torch.float32)):
            print(f"  {backend:<14} {'available' if reason is None else reason}")
    return 0


class Command(NamedTuple):
    """A subcommand: a line about it, its options, and what it does."""

    help: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS = {
    "train": Command("train a network on a data set of the papers", _train_options, _train),
    "partition": Command(
        "cut an edge list into one part for each process", _partition_options, _partition
    ),
    "plot": Command(
        "draw a trained run, or the curves of several, as PNG and SVG", _plot_options, _plot
    ),
    "report": Command(
        "all plots of a run, or several runs compared, on one HTML page", _report_options, _report
    ),
    "reproduce": Command("the papers' table, several seeds each", _reproduce_options, _reproduce),
    "demo": Command(
        "train on Cora, then time the layers against the naive formula", _demo_options, _demo
    ),
    "bench": Command("time the layers against their peers", _bench_options, _bench),
    "verify": Command("check every backend on this machine", _verify_options, _verify),
    "fuzz": Command("random cases against what is known to be right", _fuzz_options, _fuzz),
    "info": Command("versions, threads, and what each backend can run", lambda parser: None, _info),
}


if __name__ == "__main__":
    sys.exit(main())
