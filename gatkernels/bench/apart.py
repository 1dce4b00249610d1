"""What commands on workloads of their own share, `--minibatch` and `--sharded`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatkernels.bench.results import environment, write_json

#: Options of the command that are about the layers' table.
OF_THE_TABLE = (
    "quick", "targets", "kinds", "backends", "deadline", "dtypes", "peers", "curves", "seconds",
    "memory_limit", "no_memory",
)  # fmt: skip


def refuse(args: argparse.Namespace, command: str, has: str, others: Sequence[str]) -> None:
    """Raises: ValueError where an option says nothing about this command's workload."""
    for name in (*OF_THE_TABLE, *others):
        if getattr(args, name):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{command} has {has} of its own; {option} does not go with it")
    if args.device != "cpu":
        raise ValueError(f"{command} runs on the CPU, got --device {args.device}")


def save(path: Path, threads: int, results: list[dict[str, Any]], **more: Any) -> None:
    """What was measured so far, and where."""
    content = {"environment": environment(), "threads": threads, "results": results}
    write_json(path, content | more)
