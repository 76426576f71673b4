"""Where lines go."""

from __future__ import annotations

import io
import syslog
from pathlib import Path

import pytest

from tkserver.log.observer import FileSink, StreamSink, SyslogSink


def test_large_files_are_put_aside(directory: Path) -> None:
    """And only so many of them are kept: a log that is looked after by nobody does not fill the disk."""
    output = FileSink(str(directory / "log"), rotate_at=100, old_files=2)
    for number in range(100):
        output.write([("info", f"line {number:05}".encode())])
    output.close()
    files = sorted(path.name for path in directory.iterdir())
    assert files == ["log", "log.1", "log.2"]
    kept = "".join((directory / name).read_text() for name in reversed(files)).split("\n")
    assert kept[-2] == "line 00099"
    assert kept == [*sorted(kept[:-1]), ""]


@pytest.mark.parametrize("create", [False, True])
def test_moved_away(directory: Path, create: bool) -> None:
    """By logrotate, which may make an empty file in its place: nothing but that is touched."""
    log, moved = directory / "log", directory / "log.1"
    output = FileSink(str(log))
    output.write([("info", b"before")])
    log.rename(moved)
    if create:
        log.touch()
    output.rotate()
    output.write([("info", b"after")])
    output.close()
    assert {path.name: path.read_text() for path in directory.iterdir()} == {"log": "after\n", "log.1": "before\n"}


def test_disk_full() -> None:
    """A line that cannot be written is lost, and nothing else."""

    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    StreamSink(Full()).write([("info", b"line")])


def test_syslog() -> None:
    """An entry for each line, with the severity of the event."""
    sent: list[tuple[int, str]] = []
    SyslogSink("tk", lambda *entry: sent.append(entry)).write([("warn", b"one\n\ttwo")])
    assert sent == [(syslog.LOG_WARNING, "one"), (syslog.LOG_WARNING, "\ttwo")]
