"""A process that computes panels for the server, one after another, on its own connection.

Panels take processor time. In a thread of the server, they would take it from requests: a thread that computes delays
every other thread by up to 5 ms each time that it calls the operating system.

Messages on standard input and output begin with their length. The first one is the :class:`Startup`.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec import Raw, Struct

from tkserver.insight.catalog import Version, read_version
from tkserver.insight.query import InvalidQuery
from tkserver.insight.stats import compute_parts, snapshot
from tkserver.storage.blocking import BlockingConnections, Connection, rows
from tkserver.storage.errors import ConnectionLost, StorageError

LENGTH_BYTES = 4

NICENESS = 10
"""The process has a lower priority than the server, because ingest is more important."""


class Startup(Struct):
    """What the process needs to know.

    :ivar timeout: seconds after which the database cancels a statement.
    """

    dsn: str
    timeout: float


class Job(Struct):
    """A panel to compute. The parameters are those of :func:`~tkserver.insight.stats.compute`."""

    app_id: str
    org_id: str
    panel: str
    parameters: dict[str, str]
    now: datetime


class Computed(Struct, tag=True):
    """A panel.

    :ivar facts: what every panel states.
    :ivar content: the JSON object of the panel itself.
    :ivar version: determines these numbers.
    """

    facts: dict[str, Any]
    content: Raw
    version: Version


class Unknown(Struct, tag=True):
    """The application does not exist anymore."""


class Invalid(Struct, tag=True):
    """A parameter is not valid."""

    message: str


class Unavailable(Struct, tag=True):
    """The database did not do what it was asked to.

    :ivar timed_out: true if a statement took too long.
    """

    problem: str
    timed_out: bool


class Failed(Struct, tag=True):
    """The computation failed because of an error in the program.

    :ivar location: the type of the exception, and where it was raised. Its text may contain data.
    """

    location: str


Outcome = Computed | Unknown | Invalid | Unavailable | Failed


@dataclass(frozen=True)
class Task:
    """A job, and a cache of its result.

    :ivar known: returns the result if another job has computed it while this one was waiting.
    :ivar keep: called with the result, even if nobody waits for it anymore.
    """

    job: Job
    known: Callable[[], Computed | None] = lambda: None
    keep: Callable[[Computed], object] = lambda _: None


class Computer:
    """Computes panels on a connection, which is opened again when it is lost."""

    def __init__(self, startup: Startup) -> None:
        self._startup = startup
        self._connection: Connection | None = None

    def compute(self, job: Job) -> Outcome:
        """Compute a panel."""
        try:
            return self._with_connection(job)
        except InvalidQuery as error:
            return Invalid(str(error))
        except StorageError as error:
            return Unavailable(str(error), "(57014)" in str(error))
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            return Failed(f"{type(error).__name__} in {last.name}, {Path(last.filename).name}:{last.lineno}")

    def _with_connection(self, job: Job) -> Outcome:
        if self._connection is not None and not self._connection.closed:
            with suppress(ConnectionLost):  # the database may have been restarted since the last job
                return _compute(self._connection, job)
            self._connection.close()
        self._connection = self._connect()
        return _compute(self._connection, job)

    def _connect(self) -> Connection:
        connection = BlockingConnections().connect(self._startup.dsn)
        rows(connection, "SET application_name = 'tkserver statistics'")
        rows(connection, f"SET statement_timeout = {int(self._startup.timeout * 1000)}")
        with suppress(StorageError):  # not every operating system has it
            # If this process is killed, the database then stops to work for it.
            rows(connection, "SET client_connection_check_interval = 1000")
        return connection


def _compute(connection: Connection, job: Job) -> Outcome:
    with snapshot(connection):
        version = read_version(connection, job.app_id, job.org_id)
        if version is None:
            return Unknown()
        key, label = (job.app_id, job.org_id), version.app.label
        facts, content = compute_parts(connection, *key, label, job.panel, job.parameters, job.now)
        facts = {name: fact for name, fact in facts.items() if name not in content}  # one panel has a key "ci"
        return Computed(facts, Raw(msgspec.json.encode(content)), version)


def framed(message: object) -> bytes:
    """Return a message with its length."""
    data = msgspec.json.encode(message)
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


def _read(stream: BinaryIO) -> bytes | None:
    """Return the next message; ``None`` after the last one."""
    length = stream.read(LENGTH_BYTES)
    return stream.read(int.from_bytes(length, "big")) if len(length) == LENGTH_BYTES else None


def main() -> None:
    """Compute panels until the server closes the standard input."""
    for number in (signal.SIGINT, signal.SIGTERM):  # terminals and systemd send them to all processes of the server
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    # Whatever a library prints must not become a part of a message.
    requests, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    startup = _read(requests)
    if startup is None:
        return
    computer = Computer(msgspec.json.decode(startup, type=Startup))
    while (job := _read(requests)) is not None:
        results.write(framed(computer.compute(msgspec.json.decode(job, type=Job))))
        results.flush()
