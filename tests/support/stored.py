"""Events that tests insert directly into the table."""

from __future__ import annotations

from tests.support.client import App
from tests.support.database import Database

INSERT = """
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
    """Insert events of a user.

    :param days: the age of the events: how many days ago the server received them.
    :param happened: the timestamp of the events, by the clock of the client.
    """
    database.query(INSERT, app.org_id, app.app_id, happened, user, days, number)


def ages(database: Database, app: App) -> dict[int, int]:
    """Return the number of events of an application by their age in days."""
    sql = "SELECT (now()::date - received_at::date), count(*) FROM events WHERE app_id = %s AND org_id = %s GROUP BY 1"
    return dict(database.query(sql, app.app_id, app.org_id))


_INSERT_MANY = """
INSERT INTO events (event_id, org_id, app_id, schema_version, timestamp, service_name, service_version,
    service_language, user_id, os, event_type, event_data, sdk_version, transmission_timestamp, batch_size, retry_count)
SELECT gen_random_uuid(), org_id, app_id, '1.0.0', '2026-01-01Z'::timestamptz + n * interval '1 second', 'my-cli',
    '1.0.0', 'rust', 'client_' || n %% 1000, 'linux', 'built', jsonb_build_object('n', n, 'text', repeat('x', 300)),
    '0.3.0', now(), 1, 0
FROM generate_series(1, %s) AS n,
    (SELECT id, org_id, app_id, row_number() OVER (ORDER BY id) AS m, count(*) OVER () AS apps FROM api_tokens) AS t
WHERE n %% apps = m - 1
"""


def store_many(database: Database, events: int, apps: int = 1) -> list[App]:
    """Store events of 1000 users, one event per second from 2026-01-01, in new applications in turn.

    :return: the applications.
    """
    created = [App().install(database) for _ in range(apps)]
    database.query(_INSERT_MANY, events)
    database.query("ANALYZE events")
    return created


def events_by_user(database: Database, app: App) -> dict[str, int]:
    """Return the number of events of each user of an application."""
    sql = "SELECT user_id, count(*) FROM events WHERE app_id = %s AND org_id = %s GROUP BY 1"
    return dict(database.query(sql, app.app_id, app.org_id))
