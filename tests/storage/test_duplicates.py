"""Duplicates are counted for each application and day."""

from __future__ import annotations

import pytest_twisted
from twisted.internet import reactor

from tests.support.client import App
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.server import client_of, start_server
from tkserver.storage.duplicates import DuplicateCounts
from tkserver.storage.pool import Pool

COUNTS = """
SELECT app_id::text, events, day = (now() AT TIME ZONE coalesce(a.timezone, 'UTC'))::date
FROM insight_duplicates LEFT JOIN apps AS a USING (app_id, org_id) ORDER BY events
"""


def key(app: App) -> tuple[int, int]:
    """Return the key by which the server counts."""
    return int(app.org_id.replace("-", ""), 16), int(app.app_id.replace("-", ""), 16)


@pytest_twisted.ensureDeferred
async def test_duplicates_of_all_servers_are_counted(database: Database) -> None:
    """Each server adds its duplicates when it stops at the latest; other events do not count."""
    one, other, none = (App().install(database) for _ in range(3))
    batches = {app: [make_event() for _ in range(3)] for app in (one, other)}
    for numbers in ((2, 3), (7, 9)):
        server = await start_server(database)
        client = client_of(server)
        await client.send(one, batches[one])
        await client.send(one, [*batches[one], make_event()])
        await client.send(other, [*batches[other], *batches[other][:2]])
        await client.send(none, [make_event(), {}])
        await server.stopService()
        assert database.query(COUNTS) == [(other.app_id, numbers[0], True), (one.app_id, numbers[1], True)]


@pytest_twisted.ensureDeferred
async def test_failed_write_is_repeated(database: Database) -> None:
    """Counts that could not be written are written later; those of a deleted application are not."""
    app, deleted = App().install(database), App().install(database)
    database.query(
        "INSERT INTO apps (org_id, app_id, name, timezone) VALUES (%s, %s, 'x', 'Pacific/Kiritimati')",
        app.org_id,
        app.app_id,
    )
    pool = Pool(reactor, database.dsn, 1)
    await pool.start()
    counts = DuplicateCounts(pool, reactor)
    counts.add(key(app), 2)
    database.query("ALTER TABLE insight_duplicates RENAME TO hidden")
    await counts.stop()
    database.query("ALTER TABLE hidden RENAME TO insight_duplicates")
    database.query("DELETE FROM api_tokens WHERE app_id = %s", deleted.app_id)
    counts.add(key(app), 3)
    counts.add(key(deleted), 1)
    await counts.stop()
    assert database.query(COUNTS) == [(app.app_id, 5, True)]
    await counts.stop()
    await pool.stop()
    assert database.query(COUNTS) == [(app.app_id, 5, True)]
