"""The database for commands, which say so if they wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tkserver.cli.waiting import waiting_for
from tkserver.config import Settings
from tkserver.operations import database
from tkserver.storage.blocking import Connection

LONG_PAUSE = 2.0
"""Seconds. Operations pause that long to let all servers notice a change, or because the database is busy."""


@contextmanager
def open_database(settings: Settings) -> Iterator[Connection]:
    """Return a connection to the database, whose schema is migrated first."""
    with waiting_for("the database"), database.open_database(settings) as connection:
        yield connection


def sleep(seconds: float) -> None:
    """Wait."""
    if seconds < LONG_PAUSE:
        time.sleep(seconds)
        return
    with waiting_for("the servers"):
        time.sleep(seconds)
