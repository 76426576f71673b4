"""Quarantined events that tests insert directly, and what the tables contain."""

from __future__ import annotations

import uuid
from typing import Any

from tests.support.client import App
from tests.support.database import Database

_INSERT = """
INSERT INTO quarantine (
    org_id, app_id, key, event_id, request_id, batch_index, code, message, sdk, sdk_version, user_id, event, bytes,
    times, received_at, last_received_at
)
SELECT %s, %s, e.id, e.id, 'request', 0, %s, %s, %s, %s, %s, e.text, octet_length(e.text),
       1, now() - make_interval(days => %s), now() - make_interval(days => %s)
FROM unnest(%s::uuid[], %s::text[]) AS e (id, text)
"""


def put(
    database: Database,
    app: App,
    *texts: str,
    days: int = 0,
    code: str = "invalid_schema",
    message: str = "user_id: missing",
    sdk: tuple[str, str] = ("telemetry-kit-rust", "0.3.0"),
    user: str | None = None,
) -> None:
    """Put events into the quarantine of an application.

    :param texts: of the events.
    :param days: their age.
    """
    ids = [str(uuid.uuid4()) for _ in texts]
    database.query(_INSERT, app.org_id, app.app_id, code, message, *sdk, user, days, days, ids, list(texts))


def quarantined(database: Database, app: App) -> list[dict[str, Any]]:
    """Return the rows of the quarantine of an application, oldest first."""
    sql = "SELECT to_jsonb(q) FROM quarantine AS q WHERE app_id = %s AND org_id = %s ORDER BY received_at, id"
    return [row for (row,) in database.query(sql, app.app_id, app.org_id)]


def usage(database: Database, app: App) -> tuple[int, int, int]:
    """Return the number of events, the length of their texts, and the number of dropped events of an application.

    The first two must equal what the quarantine contains.
    """
    counted = "SELECT events, bytes, dropped FROM quarantine_usage WHERE app_id = %s AND org_id = %s"
    events, size, dropped = database.query(counted, app.app_id, app.org_id)[0]
    actual = "SELECT count(*), coalesce(sum(octet_length(event)), 0) FROM quarantine WHERE app_id = %s AND org_id = %s"
    assert database.query(actual, app.app_id, app.org_id) == [(events, size)]
    return events, size, dropped
