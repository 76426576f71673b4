"""Queries about what a server has stored, and about its connections to the database."""

from __future__ import annotations

from tests.support.client import App
from tests.support.database import Database
from tests.support.waiting import until

_LISTENERS = """
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
    AND query IN ('LISTEN tkserver_credentials', 'SHOW transaction_read_only')
"""

_BLOCKED = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' ORDER BY 1"


def stored_ids(database: Database, app: App) -> list[str]:
    """Return the event ids of an application, in the order in which the events were stored."""
    rows = database.query("SELECT event_id::text FROM events WHERE app_id = %s ORDER BY id", app.app_id)
    return [row[0] for row in rows]


async def until_listening(database: Database) -> None:
    """Wait until a server listens for changes."""
    await until(lambda: database.value(f"SELECT count(*) {_LISTENERS}") == 1, lambda: "no server listens for changes")


def terminate_listeners(database: Database) -> None:
    """End the connections on which servers listen for changes."""
    database.query(f"SELECT pg_terminate_backend(pid) {_LISTENERS}")


def client_backends(database: Database) -> set[int]:
    """Return the process ids of the connections that others have to a database."""
    condition = "datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    return {pid for (pid,) in database.query(f"SELECT pid FROM pg_stat_activity WHERE {condition}")}


def blocked_backends(database: Database) -> list[int]:
    """Return the process ids of the connections that wait for a lock."""
    return [pid for (pid,) in database.query(_BLOCKED)]
