"""A real ``twistd`` process, for tests that want to see one live and die."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

PATIENCE = 30.0
"""Seconds for anything that a process is expected to do."""


class Twistd:
    """``twistd`` running the server in a directory of its own.

    :param directory: its working directory, where its log goes.
    :param settings: ``TK__`` variables. A free port is taken unless they name one, and no private one.
    :param arguments: after ``twistd``.
    :param programs: where ``twistd`` is, and Python with it.
    :param listening: a socket that is handed over to it, as systemd would.
    :param open_files: how many it may have, for itself and at the most.
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
        self._settings = {"TK__SERVER__PORT": "0", "TK__ADMIN__PORT": "", **settings}
        self._command = [str(programs / "twistd"), *arguments]
        self._output = directory / "output.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._handed_over = () if listening is None else (listening.fileno(),)
        self._open_files = open_files
        if listening is not None:
            # The variables name the process that they are for, and the first socket is number 3.
            taking = 'export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=http; exec "$@" 3<&"$0"'
            self._command = ["bash", "-c", taking, str(listening.fileno()), *self._command]

    def start(self) -> Twistd:
        """Start it and wait until it listens."""
        self.launch()
        try:
            self.wait_for_line(r"listens on \S+")
        except BaseException:
            self.kill()
            raise
        return self

    def launch(self) -> Twistd:
        """Start it."""
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.directory,
                env={**environment(), **self._settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=self._handed_over,
                preexec_fn=self._open_files and partial(resource.setrlimit, resource.RLIMIT_NOFILE, self._open_files),
            )
        return self

    def __enter__(self) -> Twistd:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """All that it has said, in its own log file where it has one."""
        files = [self._output, self.directory / "twistd.log"]
        return "".join(file.read_text() for file in files if file.exists())

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        assert self._process is not None
        self._process.terminate()

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
        """The first match in its log, as soon as there is one."""
        return str(wait_for(lambda: re.search(pattern, self.log), self._explain)[0])

    def kill(self) -> None:
        """SIGKILL: it gets to do nothing more."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE)

    def stop(self, with_signal: signal.Signals = signal.SIGTERM) -> int:
        """Stop it, and give its exit code."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(with_signal)
        return self.wait()

    def wait(self) -> int:
        """Wait for it to end by itself, and give its exit code."""
        assert self._process is not None
        try:
            return self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running:\n{self.log}") from None

    def _explain(self) -> str:
        return f"{' '.join(self._command)} said:\n{self.log}"


def environment() -> dict[str, str]:
    """The environment of the tests without settings of the server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TK__")}


def wait_for(condition: Callable[[], Any], explain: Callable[[], str] = lambda: "it did not happen") -> Any:
    """What ``condition`` gives, as soon as that is true."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, explain()
        time.sleep(0.02)
    return result
