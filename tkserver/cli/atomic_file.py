"""Files that appear only when they are complete."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tkserver.cli.exit_codes import Failed


@contextmanager
def open_atomically(path: str, *, replace: bool) -> Iterator[BinaryIO]:
    """Open a file for writing. It appears, readable by its owner only, when the context ends without an exception.

    :param path: ``-`` for standard output.
    :param replace: true to replace an existing file.
    :raise Failed: if the file exists and must not be replaced, or cannot be written.
    """
    if path == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    _check_target(target, replace)
    try:
        with _temporary_file(target) as (file, temporary_path):
            yield file
            file.flush()
            os.fsync(file.fileno())
            _check_target(target, replace)
            temporary_path.replace(target)
    except OSError as error:
        raise Failed(f"{path} cannot be written: {error.strerror}") from None


def _check_target(target: Path, replace: bool) -> None:
    if not target.exists():
        return
    if not target.is_file():
        raise Failed(f"{target} exists and is not a file: specify another path")
    if not replace:
        raise Failed(f"{target} exists: --force replaces it")


@contextmanager
def _temporary_file(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Create a file in the same directory, which can then be renamed, and delete it unless it was."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    path = Path(name)
    try:
        with open(descriptor, "wb") as file:
            yield file, path
    finally:
        path.unlink(missing_ok=True)
