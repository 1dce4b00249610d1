"""Packages that not every installation has, and which versions there are."""

from __future__ import annotations

import importlib
import platform
from importlib import metadata
from typing import Any

import torch


class MissingExtraError(ImportError):
    """A package of an optional extra is not installed."""


def require(module: str, package: str, extra: str = "experiments") -> Any:
    """Import ``module``; if ``package`` is absent, say which extra installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"this command needs {package} ({error}); install it with "
            f"'pip install gatkernels[{extra}]'"
        ) from error


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("gatkernels", "numpy", "torch-geometric", "dgl", "triton"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            if package == "gatkernels":
                from gatkernels import __version__

                found[package] = __version__
    return found
