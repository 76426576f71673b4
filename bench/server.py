"""A running server to look at: ``twistd`` on an embedded database, both new."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tkserver.storage.blocking import BlockingConnections, rows
from tkserver.storage.embedded.postgres import EmbeddedPostgres

_TWISTD = (str(Path(sys.executable).with_name("twistd")),)


@dataclass(frozen=True)
class Server:
    """A running server.

    :ivar held: where it writes what it holds, if it is a watched one.
    """

    port: int
    pid: int
    dsn: str
    held: Path

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def rss_mb(self) -> float:
        return self._status("VmRSS") / 1024

    @property
    def peak_rss_mb(self) -> float:
        return self._status("VmHWM") / 1024

    @property
    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    @property
    def connections(self) -> int:
        """Those of clients."""
        found = psutil.Process(self.pid).net_connections("tcp")
        return sum(one.laddr.port == self.port and one.status != psutil.CONN_LISTEN for one in found)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows that its database answers with."""
        with closing(BlockingConnections().connect(self.dsn)) as connection:
            return rows(connection, sql)

    def _status(self, name: str) -> int:
        return int(re.findall(rf"{name}:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())[0])


@contextmanager
def running_server(*, watched: bool = False, **settings: str) -> Iterator[Server]:
    """A server on an embedded database in a new directory.

    :param watched: run by :mod:`bench.watched`.
    :param settings: variables, by name.
    """
    directory = Path(tempfile.mkdtemp(prefix="tkbench"))
    log, held = directory / "log", directory / "held"
    environment = {
        **os.environ,
        "TK__SERVER__PORT": "0",
        "TK__ADMIN__PORT": "0",
        "TK__DATABASE__DATA_DIR": str(directory / "data"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
        **settings,
    }
    twistd = (sys.executable, "-m", "bench.watched", str(held)) if watched else _TWISTD
    command = [*twistd, "-n", "--pidfile=", "tkserver"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=output, stderr=output)
    try:
        port = _wait_until_ready(log)
        yield Server(port, process.pid, EmbeddedPostgres(directory / "data").dsn, held)
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _wait_until_ready(log: Path) -> int:
    for _ in range(600):
        time.sleep(0.1)
        found = re.search(r"listens on http://[^:]+:(\d+)", log.read_text())
        if found:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/health/ready"):
                    return int(found[1])
            except urllib.error.URLError:
                continue
    raise SystemExit(f"the server did not start:\n{log.read_text()}")
