"""Start and observe a server: a ``twistd`` process with a new embedded database."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
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
from urllib.parse import quote

import psutil
import psycopg2

CHECKOUT = Path(__file__).parents[1]
"""The checkout that contains this file."""

START_TIMEOUT = 60.0
"""Seconds."""

_SCRIPTS = Path(sys.executable).parent

# The wording of this message differs between versions. Its version number and its URL do not.
_LISTENING = re.compile(r"tkserver \d\S* .*http://[^:/\s]+:(\d+)")


@dataclass(frozen=True)
class Server:
    """A running server.

    :ivar checkout: the directory that its code comes from.
    :ivar report: the file that the module writes that runs the server, if there is one.
    """

    port: int
    pid: int
    checkout: Path
    data_dir: Path
    report: Path

    @property
    def cpu_seconds(self) -> float:
        """Processor time that the process has used, with the resolution of the scheduler.

        ``/proc/PID/stat`` counts in ticks of 10 ms, which is too coarse for short measurements. On Linux, the id of a
        process's CPU clock is computed from its pid: see clock_getcpuclockid(3).
        """
        return time.clock_gettime((~self.pid << 3) | 2)

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
    def client_connections(self) -> int:
        connections = psutil.Process(self.pid).net_connections("tcp")
        return sum(
            connection.laddr.port == self.port and connection.status != psutil.CONN_LISTEN for connection in connections
        )

    def next_report(self) -> Any:
        """Return what the module that runs the server reports since the last call."""
        self.report.touch()
        self.report.chmod(0o666)  # the user of the server may be another one
        reports = self.report.read_text().count("\n")
        os.kill(self.pid, signal.SIGUSR2)
        while self.report.read_text().count("\n") == reports:
            time.sleep(0.01)
        return json.loads(self.report.read_text().splitlines()[-1])

    @property
    def dsn(self) -> str:
        """The embedded database's address."""
        # PostgreSQL writes the directory of its socket into the fifth line of this file.
        socket_dir = (self.data_dir / "postmaster.pid").read_text().splitlines()[4]
        return f"postgresql://postgres@/postgres?host={quote(socket_dir, safe='')}"

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement in the server's database and return its rows."""
        with closing(psycopg2.connect(self.dsn)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql, parameters or None)
                return cursor.fetchall() if cursor.description else []

    def run_command(self, *arguments: str, **settings: str) -> str:
        """Run a ``tkserver`` command with the server's code and database, and return its output."""
        environment = {**_environment(self.checkout), "TK__DATABASE__URL": self.dsn, **settings}
        command = [str(_SCRIPTS / "tkserver"), *arguments]
        return subprocess.run(
            command, cwd=self.data_dir.parent, env=environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    def _status(self, name: str) -> int:
        return int(re.findall(rf"{name}:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())[0])


@contextmanager
def running_server(
    *, checkout: Path = CHECKOUT, module: str = "", data_dir: Path | None = None, **settings: str
) -> Iterator[Server]:
    """Run a server with an embedded database in a new directory, and remove both afterwards.

    :param checkout: the directory that the server's code comes from.
    :param module: runs the server: :mod:`bench.instrumented` or :mod:`bench.stalls`. By default, ``twistd`` does.
    :param data_dir: the directory of another embedded database, which is not removed.
    :param settings: environment variables, by name.
    """
    directory = Path(tempfile.mkdtemp(prefix="tkbench"))
    directory.chmod(0o777)  # a server that was started as root continues as another user
    log, report = directory / "log", directory / "report"
    data_dir = data_dir or directory / "data"
    environment = {
        **_environment(checkout),
        "TK__SERVER__PORT": "0",
        "TK__ADMIN__PORT": "0",
        "TK__DATABASE__DATA_DIR": str(data_dir),
        **settings,
    }
    twistd = [sys.executable, "-m", module, str(report)] if module else [_SCRIPTS / "twistd"]
    command = [*twistd, "-n", "--pidfile=", "tkserver"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=output, stderr=output)
    try:
        port = _wait_until_ready(process, log)
        yield Server(port, process.pid, checkout, data_dir, report)
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout)}


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> int:
    """Return the server's port as soon as the server is ready.

    :raise SystemExit: when the server exits or is not ready in time.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        listening = _LISTENING.search(log.read_text())
        if listening and _is_ready(int(listening[1])):
            return int(listening[1])
        time.sleep(0.1)
    raise SystemExit(f"The server did not start:\n{log.read_text()}")


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready"):
            return True
    except urllib.error.URLError:
        return False
