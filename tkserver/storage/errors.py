"""Errors of the database, and the translation of the driver's exceptions into them."""

from __future__ import annotations

import re

import psycopg2
from psycopg2 import errorcodes


class StorageError(Exception):
    """An operation of the database failed.

    The text is written to the log. It names the condition, and never contains a value, a statement or a password.

    :ivar sqlstate: the code of the condition in PostgreSQL; ``None`` if PostgreSQL did not report one.
    """

    holds_no_values = True
    sqlstate: str | None = None

    @property
    def cause(self) -> str:
        """A short name of the cause, of which there are few: the SQLSTATE, or the class as in ``connection_lost``."""
        return self.sqlstate or re.sub("(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()


class Unavailable(StorageError):
    """A later attempt may succeed: the database does not run or respond, or is busy, full or read-only."""


class ConnectionLost(Unavailable):
    """The connection is unusable. A statement that was in progress may have been committed."""


class ReadOnly(Unavailable):
    """The session cannot write: the server has become a standby, or an operator has made it read-only."""


class Collision(Unavailable):
    """Another transaction interfered (serialization failure or deadlock). An immediate retry may succeed."""


class DataRefused(StorageError):
    """The database does not accept these values."""


class DuplicateKey(DataRefused):
    """A row with this key exists."""


class Inseparable(StorageError):
    """The operation cannot be done for several submissions at once."""


_KINDS: dict[str, type[StorageError]] = {
    errorcodes.READ_ONLY_SQL_TRANSACTION: ReadOnly,
    errorcodes.SERIALIZATION_FAILURE: Collision,
    errorcodes.DEADLOCK_DETECTED: Collision,
    errorcodes.UNIQUE_VIOLATION: DuplicateKey,
}
_CONNECTION_CLASSES = {"08", "57P"}  # connection exception; operator intervention that ends the session
_DATA_CLASSES = {"22", "23", "54"}  # data exception; integrity constraint violation; program limit exceeded


def translate(error: BaseException) -> StorageError | None:
    """Return the :exc:`StorageError` for an exception of the driver; ``None`` if the database did not cause it.

    The PostgreSQL manual lists SQLSTATE codes and their classes in appendix A.
    """
    if isinstance(error, StorageError):
        return error
    if not isinstance(error, psycopg2.Error):
        return None
    state = error.pgcode
    if state is None:
        # The driver itself raised it because of wrong use, or a lost connection. The latter text contains no values.
        return None if isinstance(error, psycopg2.ProgrammingError) else ConnectionLost(_first_line(error))
    translated = _kind(state)(f"{_name(state)} ({state})")
    translated.sqlstate = state
    return translated


def _kind(state: str) -> type[StorageError]:
    if state[:2] in _DATA_CLASSES:
        return _KINDS.get(state, DataRefused)
    if state[:2] in _CONNECTION_CLASSES or state[:3] in _CONNECTION_CLASSES:
        return ConnectionLost
    return _KINDS.get(state, Unavailable)


def _name(state: str) -> str:
    try:
        return errorcodes.lookup(state).lower().replace("_", " ")
    except KeyError:
        return "unknown condition"


def _first_line(error: psycopg2.Error) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
