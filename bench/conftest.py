"""Turns benchmarks on for `pytest bench`, and prints one table of all results at the end."""

from __future__ import annotations

import pytest

from gatkernels.bench.report import show
from gatkernels.bench.results import Report, environment

REPORT = pytest.StashKey[Report]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if "--benchmark-disable" not in config.invocation_params.args:
        config.option.benchmark_disable = False
    config.stash[REPORT] = Report(environment(), {})


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    return pytestconfig.stash[REPORT]


def pytest_terminal_summary(config: pytest.Config) -> None:
    if config.stash[REPORT].cases:
        show(config.stash[REPORT])
