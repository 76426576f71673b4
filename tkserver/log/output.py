"""Where lines go."""

from __future__ import annotations

import os
import syslog
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from twisted.python.logfile import LogFile

ROTATE_AT = 100_000_000
"""Bytes."""

OLD_FILES = 10
"""Kept beside the one that is being written."""


Line = tuple[str, bytes]
"""A level, and what is to be written without its end."""


class Output(Protocol):
    """Takes lines. Never fails: there is nobody to tell."""

    def write(self, lines: Sequence[Line]) -> None: ...


class StreamOutput:
    """Standard output."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, lines: Sequence[Line]) -> None:
        try:
            self._stream.write(_text(lines))
            self._stream.flush()
        except (OSError, ValueError):
            return


class FileOutput:
    """A file that is put aside when it is large, or when :meth:`rotate` is called.

    :raise OSError: when it cannot be opened.
    """

    def __init__(self, path: str, *, rotate_at: int = ROTATE_AT, old_files: int = OLD_FILES) -> None:
        self._file = LogFile.fromFullPath(path, rotateLength=rotate_at, maxRotatedFiles=old_files)

    def write(self, lines: Sequence[Line]) -> None:
        try:
            self._file.write(_text(lines))
        except (OSError, ValueError):
            return

    def close(self) -> None:
        self._file.close()

    def rotate(self) -> None:
        """Begin a new file. Where somebody else has moved the old one away, go on in what is there now, if anything."""
        if self._is_in_its_place():
            self._file.rotate()
        else:
            self._file.reopen()

    def _is_in_its_place(self) -> bool:
        """Whether its name still leads to it: logrotate may have made an empty one (``create``)."""
        try:
            return os.path.samestat(Path(self._file.path).stat(), os.fstat(self._file._file.fileno()))
        except FileNotFoundError:
            return False


class SyslogOutput:
    """The system's log: an entry for each line of a text, as severe as the event is.

    :param send: takes a priority and a text.
    """

    _PRIORITIES = {
        "debug": syslog.LOG_DEBUG,
        "info": syslog.LOG_INFO,
        "warn": syslog.LOG_WARNING,
        "error": syslog.LOG_ERR,
        "critical": syslog.LOG_CRIT,
    }

    def __init__(self, prefix: str, send: Callable[[int, str], None] = syslog.syslog) -> None:
        syslog.openlog(prefix, 0, syslog.LOG_USER)
        self._send = send

    def write(self, lines: Sequence[Line]) -> None:
        for level, line in lines:
            for part in line.decode().split("\n"):
                self._send(self._PRIORITIES[level], part)


def _text(lines: Sequence[Line]) -> bytes:
    return b"".join([line + b"\n" for _, line in lines])
