"""The standard streams of commands: closed ones, full disks, and encodings that cannot represent all characters."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click

_WRITE_ERRORS = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


@contextmanager
def usable_streams() -> Iterator[None]:
    """Report failures of standard output as errors, and replace characters that a stream cannot represent by escapes.

    Commands do nothing if standard output is closed: nobody would see, for example, the secret that was created.
    """
    _open_missing(0, os.O_RDONLY)
    _open_missing(2, os.O_WRONLY)
    if sys.stdout is None:
        _fail("standard output is closed")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in _WRITE_ERRORS:
            raise
        _discard_output()
        if error.errno == errno.EPIPE:  # whoever reads has seen enough
            sys.exit(1)
        _fail(f"{error.filename or 'standard output'} cannot be written: {error.strerror}")


def _open_missing(descriptor: int, flags: int) -> None:
    """Open the null device in the place of a closed stream. Otherwise, a database connection could take its number."""
    if (sys.stdin if descriptor == 0 else sys.stderr) is None:
        opened = os.open(os.devnull, flags)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)


def _discard_output() -> None:
    """Let what is left in the buffer of standard output vanish, so that the interpreter does not fail to write it."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _fail(message: str) -> None:
    click.echo(f"Error: {message}", err=True)
    sys.exit(1)
