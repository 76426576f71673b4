"""The sinks of the log: streams, files and syslog."""

from __future__ import annotations

import io
import syslog
from pathlib import Path

import pytest

from tkserver.log.observer import FileSink, StreamSink, SyslogSink


def test_large_files_are_rotated(directory: Path) -> None:
    """A full file is rotated, and only a limited number of rotated files is kept."""
    sink = FileSink(str(directory / "log"), max_size=100, rotated_files=2)
    for number in range(100):
        sink.write([("info", f"line {number:05}".encode())])
    sink.close()
    files = sorted(path.name for path in directory.iterdir())
    assert files == ["log", "log.1", "log.2"]
    lines = "".join((directory / name).read_text() for name in reversed(files)).split("\n")
    assert lines[-2] == "line 00099"
    assert lines == [*sorted(lines[:-1]), ""]


@pytest.mark.parametrize("create", [False, True])
def test_file_moved_by_logrotate(directory: Path, create: bool) -> None:
    """If logrotate has moved the file, the file at the path is opened; the moved file is not changed."""
    log, moved = directory / "log", directory / "log.1"
    sink = FileSink(str(log))
    sink.write([("info", b"before")])
    log.rename(moved)
    if create:
        log.touch()
    sink.rotate()
    sink.write([("info", b"after")])
    sink.close()
    assert {path.name: path.read_text() for path in directory.iterdir()} == {"log": "after\n", "log.1": "before\n"}


def test_line_is_lost_if_the_disk_is_full() -> None:
    """A line that cannot be written is lost, and no error is raised."""

    class FullDisk(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    StreamSink(FullDisk()).write([("info", b"line")])


def test_syslog() -> None:
    """Each line becomes a message with the priority of its event."""
    messages: list[tuple[int, str]] = []
    SyslogSink("tk", lambda *message: messages.append(message)).write([("warn", b"one\n\ttwo")])
    assert messages == [(syslog.LOG_WARNING, "one"), (syslog.LOG_WARNING, "\ttwo")]
