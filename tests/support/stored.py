"""Events that are in the table already, of any age."""

from __future__ import annotations

from tests.support.client import App
from tests.support.database import Database

_INSERT = """
INSERT INTO events (
    event_id, org_id, app_id, schema_version, timestamp, service_name, service_version, service_language, user_id, os,
    event_type, event_data, sdk_version, transmission_timestamp, batch_size, retry_count, received_at
)
SELECT gen_random_uuid(), %s, %s, '1.0.0', %s::timestamptz, 'my-cli', '1.2.3', 'rust', %s, 'linux',
       'command', '{}', '0.3.0', now(), 1, 0, now() - make_interval(days => %s)
FROM generate_series(1, %s)
"""


def store(
    database: Database, app: App, number: int, *, days: int = 0, user: str = "client_a", happened: str = "now"
) -> None:
    """Put events of one user into the table.

    :param days: ago, when they were received.
    :param happened: when, by the clock of the client.
    """
    database.query(_INSERT, app.org_id, app.app_id, happened, user, days, number)


def ages(database: Database, app: App) -> dict[int, int]:
    """How many events of so many days an application has."""
    sql = "SELECT (now()::date - received_at::date), count(*) FROM events WHERE app_id = %s AND org_id = %s GROUP BY 1"
    return dict(database.query(sql, app.app_id, app.org_id))
