"""Files are written beside their place and renamed: a reader never meets half a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def folder_of(path: Path) -> Iterator[None]:
    """``path`` is a folder; what of it was created and has nothing in it at the end goes again."""
    absent = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # as soon as one is not empty
            for folder in absent:
                folder.rmdir()


def write(path: Path, save: Callable[[Path], object]) -> Path:
    """Write beside ``path`` and rename; what was there stays until then.

    Raises: OSError, also where ``torch.save`` has its own error.
    """
    part = path.with_name(f".part-{path.name}")
    with folder_of(path.parent):
        try:
            save(part)
            part.replace(path)
        except OSError as error:
            if error.filename is None:  # as where writing failed
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise
        except RuntimeError as error:
            raise OSError(f"{path} cannot be written: {first_line(error)}") from error
        finally:
            part.unlink(missing_ok=True)
    return path


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a line of a terminal."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error).split("\n", 1)[0] or type(error).__name__
