"""What can go wrong with the database, in our own words, and the one translation from the driver's."""

from __future__ import annotations

import psycopg2
from psycopg2 import errorcodes

DriverError = psycopg2.Error
"""What blocking connections raise, and :func:`translate` understands."""


class StorageError(Exception):
    """The database did not do what it was asked to.

    The text is for the log: it names the condition, and never a value, a statement or a password.
    """

    holds_no_values = True


class Unavailable(StorageError):
    """It may work next time: the database is away, busy, full, read-only, or did not answer in time."""


class ConnectionLost(Unavailable):
    """The connection is of no more use. What was under way may have been committed or not."""


class Collision(Unavailable):
    """Another transaction got in between (serialization failure or deadlock): to be tried again at once."""


class DataRefused(StorageError):
    """The database will never take these values."""


class Inseparable(StorageError):
    """What was asked for at once is to be asked for in parts."""


_COLLISIONS = {errorcodes.SERIALIZATION_FAILURE, errorcodes.DEADLOCK_DETECTED}
_CONNECTION_CLASSES = {"08", "57P"}  # connection exception; operator intervention that ends the session
_DATA_CLASSES = {"22", "23", "54"}  # data exception; integrity constraint violation; program limit exceeded


def translate(error: BaseException) -> StorageError | None:
    """The driver's exception as one of ours; ``None`` when it is no fault of the database.

    SQLSTATE classes: PostgreSQL manual, appendix A.
    """
    if isinstance(error, StorageError):
        return error
    if not isinstance(error, psycopg2.Error):
        return None
    state = error.pgcode
    if state is None:
        # The driver speaks for itself: of a mistake in our use of it, or of the connection, and then without values.
        return None if isinstance(error, psycopg2.ProgrammingError) else ConnectionLost(_first_line(error))
    condition = f"{_name(state)} ({state})"
    if state in _COLLISIONS:
        return Collision(condition)
    if state[:2] in _DATA_CLASSES:
        return DataRefused(condition)
    if state[:2] in _CONNECTION_CLASSES or state[:3] in _CONNECTION_CLASSES:
        return ConnectionLost(condition)
    return Unavailable(condition)


def _name(state: str) -> str:
    try:
        return errorcodes.lookup(state).lower().replace("_", " ")
    except KeyError:
        return "unknown condition"


def _first_line(error: psycopg2.Error) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
