"""A real ``twistd`` process, which tests start, stop and kill."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from tests.support.blocking_client import is_ready
from tests.support.waiting import TIMEOUT, wait_for


class Twistd:
    """``twistd`` that runs the server in a separate directory.

    :param directory: the working directory, which also contains the log.
    :param settings: ``TK__`` variables. By default, the server takes a free port, has no admin port, and does not
        aggregate events.
    :param arguments: the arguments of ``twistd``.
    :param programs: the directory of ``twistd`` and its Python.
    :param listening: a listening socket that the process inherits, as from systemd.
    :param open_files: the soft and the hard limit of open files.
    """

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, str],
        arguments: tuple[str, ...] = ("-n", "tkserver"),
        programs: Path = Path(sys.executable).parent,
        *,
        listening: socket.socket | None = None,
        open_files: tuple[int, int] | None = None,
    ) -> None:
        self.directory = directory
        defaults = {"TK__SERVER__PORT": "0", "TK__ADMIN__PORT": "none", "TK__INSIGHT__ENABLED": "false"}
        self._settings = {**defaults, **settings}
        self._command = [str(programs / "twistd"), *arguments]
        self._output = directory / "output.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._inherited = () if listening is None else (listening.fileno(),)
        self._open_files = open_files
        if listening is not None:
            # The variables contain the process id of the receiver, and the first socket has the number 3.
            script = 'export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=http; exec "$@" 3<&"$0"'
            self._command = ["bash", "-c", script, str(listening.fileno()), *self._command]

    def start(self) -> Twistd:
        """Start the process, and wait until it listens."""
        self.launch()
        try:
            self.wait_for_line(r"listens on \S+")
        except BaseException:
            self.kill()
            raise
        return self

    def launch(self) -> Twistd:
        """Start the process."""
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.directory,
                env={**environment(), **self._settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=self._inherited,
                preexec_fn=self._open_files and partial(resource.setrlimit, resource.RLIMIT_NOFILE, self._open_files),
            )
        return self

    def __enter__(self) -> Twistd:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """Everything that the process has written to its output and to ``twistd.log``."""
        files = [self._output, self.directory / "twistd.log"]
        return "".join(file.read_text() for file in files if file.exists())

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def port(self) -> int:
        found = re.findall(r"listens on https?://\S+:(\d+)", self.log)
        return int(found[-1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_for_line(self, pattern: str) -> str:
        """Wait until the log matches a pattern, and return the first match."""
        return str(wait_for(lambda: self._find(pattern), self._explain)[0])

    def _find(self, pattern: str) -> re.Match[str] | None:
        failed = self._process is not None and self._process.poll() not in (None, 0)
        match = re.search(pattern, self.log)
        assert match or not failed, self._explain()
        return match

    def wait_until_ready(self) -> None:
        """Wait until the server can store events."""
        wait_for(lambda: is_ready(self.url), self._explain)

    def terminate(self) -> None:
        """Send SIGTERM, and return immediately."""
        assert self._process is not None
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL, and wait until the process has ended."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(TIMEOUT)

    def stop(self, with_signal: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal if the process is running, wait until it has ended, and return its exit code."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(with_signal)
        return self.wait()

    def wait(self) -> int:
        """Wait until the process has ended, and return its exit code."""
        assert self._process is not None
        try:
            return self._process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running:\n{self.log}") from None

    def _explain(self) -> str:
        return f"{' '.join(self._command)} logged:\n{self.log}"


def environment() -> dict[str, str]:
    """Return the environment of the tests without the settings of the server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TK__")}
