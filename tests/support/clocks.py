"""Clocks of a server and of its database that tests set."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor

from tests.support.database import Database


class ReactorWithClock:
    """The reactor of the process, except for the time that it tells. Its timers follow the real time.

    :ivar now: Unix time.
    """

    def __init__(self, now: float) -> None:
        self.now = now

    def seconds(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


def set_clock(database: Database, now: float) -> None:
    """Make ``now()`` return this time on all connections to the database that are opened from now on."""
    name = database.value("SELECT current_database()")
    database.query(f"ALTER DATABASE {name} SET search_path = public, pg_catalog")  # otherwise, pg_catalog is first
    database.query(
        "CREATE OR REPLACE FUNCTION public.now() RETURNS timestamptz LANGUAGE sql STABLE"
        f" AS 'SELECT pg_catalog.to_timestamp({now!r})'"
    )
