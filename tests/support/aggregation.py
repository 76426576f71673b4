"""The aggregating process of a server, and events for it."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.support.client import App
from tests.support.database import Database
from tests.support.naive_statistics import RawEvent
from tests.support.process import Twistd
from tests.support.raw_events import NOW, random_event
from tests.support.waiting import wait_for
from tkserver.insight import aggregator
from tkserver.insight.stats import compute
from tkserver.storage.blocking import Connection

ENABLED = {"TK__INSIGHT__ENABLED": "true", "TK__INSIGHT__INTERVAL": "0.05"}
"""Settings with which a server aggregates almost at once."""


def aggregating_process(server: Twistd) -> int:
    """Wait until a server has an aggregating process, and return its id."""
    return int(wait_for(lambda: _aggregating_process(server.pid), lambda: server.log))


def _aggregating_process(pid: int) -> int | None:
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(FileNotFoundError):  # it has ended
            if b"tkserver.insight.background" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    return None


def has_ended(pid: int) -> bool:
    """Return whether a process has ended. Its parent may not have noticed that yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_active(database: Database, server: Twistd) -> None:
    """Wait until a process aggregates in the background."""
    key = aggregator._BACKGROUND_LOCK_KEY
    sql = """
    SELECT count(*) FROM pg_locks
    WHERE locktype = 'advisory' AND classid::bigint = %s AND objid::bigint = %s
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    """
    wait_for(lambda: database.value(sql, key >> 32, key & 0xFFFFFFFF), lambda: server.log, within=90)


def wait_until_aggregated(database: Database, server: Twistd | None = None) -> None:
    """Wait until all events are aggregated in the background, with the current time zones."""
    sql = """
    SELECT watermark >= (SELECT coalesce(max(id), 0) FROM events) AND NOT EXISTS (
        SELECT FROM insight_apps AS i LEFT JOIN apps AS a USING (app_id, org_id)
        WHERE watermark IS NOT NULL OR i.timezone <> coalesce(a.timezone, 'UTC')
    )
    FROM insight_progress
    """
    wait_for(lambda: database.value(sql), lambda: server.log if server else "events are not aggregated", within=90)


def plain_event(id_: int, **changes: Any) -> RawEvent:
    """Return an event that succeeded, on the day before ``NOW``."""
    received = NOW - timedelta(days=1)
    plain: dict[str, Any] = {"user_id": "client_a", "timestamp": received, "received_at": received, "ci": False}
    plain |= {"version": "1.0.0", "data": {"command": "build", "success": True}}
    return replace(random_event(random.Random(id_), id_), **{**plain, **changes})


def totals(connection: Connection, app: App, **parameters: str) -> dict[str, int]:
    """Return the totals of an application, of the 30 days before ``NOW`` unless parameters say otherwise."""
    panel = compute(connection, app.app_id, app.org_id, "x", "overview", {"ci": "include", **parameters}, NOW)
    return dict(panel["totals"])
