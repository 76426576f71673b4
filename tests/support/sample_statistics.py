"""An application with statistics."""

from __future__ import annotations

import random
import time
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

from tests.support.client import App
from tests.support.database import Database
from tests.support.naive_statistics import RawEvent
from tests.support.raw_events import insert, random_event
from tkserver.operations import statistics
from tkserver.storage.blocking import BlockingConnections, rows, value


def store_recent(database: Database, app: App, numbers: range) -> None:
    """Store events of the last two days, without aggregating them: the new version fails more often.

    :param numbers: the ids of the events.
    """
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        now = value(connection, "SELECT now()")
        events: list[RawEvent] = []
        for n in numbers:
            received = now - timedelta(hours=n // 2 % 48, minutes=1)  # both versions are used on each day
            data = {"command": "build", "success": n % 20 > (6 if n % 2 else 0), "duration_ms": n, "flags": ["--fast"]}
            events.append(
                replace(
                    random_event(random.Random(n), n),
                    user_id=f"client_{n % 9}",
                    timestamp=received,
                    received_at=received,
                    ci=False,
                    version="1.4.0" if n % 2 else "1.3.2",
                    os="linux",
                    data=data,
                )
            )
        insert(connection, app, events)
        rows(connection, "SELECT setval('events_id_seq', greatest(%s, last_value)) FROM events_id_seq", numbers.stop)


def aggregate(database: Database) -> None:
    """Add all events to the aggregates."""
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        statistics.refresh(connection, time.sleep)


def install_named(database: Database, name: str, org: str | None = None) -> App:
    """Create an application with a name and a token, in an organization with a name if one is given."""
    app = App().install(database)
    slug = name if name.isidentifier() or name == "my-cli" else None
    database.query(
        "INSERT INTO apps (org_id, app_id, name, slug) VALUES (%s, %s, %s, %s)", app.org_id, app.app_id, name, slug
    )
    if org is not None:
        database.query("INSERT INTO orgs (org_id, name) VALUES (%s, %s)", app.org_id, org)
    return app
