"""Presets, data sets, training loop and plots behind ``gatkernels train``."""

from __future__ import annotations

import importlib
from typing import Any


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
