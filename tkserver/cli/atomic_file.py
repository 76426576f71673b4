"""A file that is there only when it is whole."""

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
def written_whole(path: str, *, replace: bool) -> Iterator[BinaryIO]:
    """What to write to. It lies beside its place, may be read by its owner only, and takes the place in the end.

    :param path: ``-`` for standard output.
    :param replace: whether a file that is there already may be replaced.
    :raise Failed: when it may not, or cannot be written.
    """
    if path == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    place = Path(path)
    _check_free(place, replace)
    try:
        with _beside(place) as (file, name):
            yield file
            file.flush()
            os.fsync(file.fileno())
            _check_free(place, replace)
            name.replace(place)
    except OSError as error:
        raise Failed(f"{path} cannot be written: {error.strerror}") from None


def _check_free(place: Path, replace: bool) -> None:
    if place.exists() and not (replace and place.is_file()):
        raise Failed(f"{place} is there already" + ("" if replace else ": --force replaces it"))


@contextmanager
def _beside(place: Path) -> Iterator[tuple[BinaryIO, Path]]:
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    temporary = Path(name)
    try:
        with open(handle, "wb") as file:
            yield file, temporary
    finally:
        temporary.unlink(missing_ok=True)
