"""Staging applications: limits, and promotion."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import pytest

from tests.support.client import App as ClientApp
from tests.support.database import Database
from tests.support.quarantined import put, usage
from tests.support.stored import store
from tkserver.operations import erasure, publishing, statistics
from tkserver.operations.apps import create_app, find_app
from tkserver.operations.exceptions import NotStaging
from tkserver.operations.models import App
from tkserver.operations.read_tokens import create_read_token
from tkserver.operations.staging import DELETED_TABLES, promote
from tkserver.operations.tokens import list_tokens
from tkserver.storage.blocking import Connection

KEPT_TABLES = {
    "api_tokens": "programs go on with the same credentials",
    "read_tokens": "programs go on with the same credentials",
    "apps": "names and settings; the limits are lifted",
    "dashboard_links": "who may see the application",
    "dashboard_sessions": "who may see the application",
    "share_links": "who may see the application",
    "public_pages": "the numbers are computed again",
    "erasures": "users remain erased",
    "nonces": "requests must not be accepted twice",
    "quarantine_usage": "a trigger counts",
}
"""Tables with rows of applications that a promotion does not delete, with the reasons."""

WITH_IDS = """
SELECT table_name FROM information_schema.columns WHERE column_name IN ('app_id', 'org_id')
  AND table_name IN (SELECT relname FROM pg_class WHERE relkind = 'r') AND table_schema = current_schema()
GROUP BY table_name HAVING count(*) = 2
"""


def create(connection: Connection, name: str, *, staging: bool = True) -> App:
    """Create an application, and return it."""
    create_app(connection, name, staging=staging)
    return find_app(connection, name)


def client_of(app: App) -> ClientApp:
    """Return the application as other support code takes it."""
    return ClientApp(str(app.org_id), str(app.app_id))


def promote_quickly(connection: Connection, app: App) -> int:
    return promote(connection, app, time.monotonic, lambda _: None)


def test_limits(connection: Connection) -> None:
    """A staging application has a quota and a retention; others have neither."""
    app = create(connection, "trial")
    assert (app.staging, app.monthly_quota, app.retention_days) == (True, 1000, 30)
    assert app.title == "trial (staging)"
    other = create(connection, "real", staging=False)
    assert (other.staging, other.monthly_quota, other.retention_days, other.title) == (False, None, None, "real")


def test_every_table_is_considered(database: Database) -> None:
    """Each table with rows of applications is deleted by a promotion, or kept for a reason."""
    assert {name for (name,) in database.query(WITH_IDS)} == {*DELETED_TABLES, *KEPT_TABLES}


def test_promotion(connection: Connection, database: Database) -> None:
    """Events, quarantine and statistics are deleted, limits are lifted, and everything else stays, as do others."""
    app, other = create(connection, "trial"), create(connection, "other")
    for one in (app, other):
        store(database, client_of(one), 25)
        put(database, client_of(one), "{}", "{}")
        erasure.record(connection, "client_x", one)
        create_read_token(connection, one)
    publishing.publish(connection, app, None, datetime.now(timezone.utc), time.sleep)
    statistics.refresh(connection, time.sleep)
    database.query("INSERT INTO insight_duplicates SELECT org_id, app_id, now(), 3 FROM apps")
    tokens = list_tokens(connection, app)
    store(database, client_of(app), 1)  # not aggregated
    assert promote_quickly(connection, app) == 26
    promoted = find_app(connection, "trial")
    assert (promoted.staging, promoted.monthly_quota, promoted.retention_days) == (False, None, None)
    assert (promoted.key, promoted.slug, list_tokens(connection, app)) == (app.key, app.slug, tokens)
    assert usage(database, client_of(app)) == (0, 0, 0)
    assert usage(database, client_of(other))[0] == 2
    for table, number in (("events", 25), ("insight_apps", 1), ("insight_duplicates", 1)):
        assert database.query(f"SELECT count(*), min(app_id::text) FROM {table}") == [(number, other.key[0])]
    assert database.value("SELECT count(*) FROM insight_users") == 1
    for table in ("erasures", "read_tokens"):
        assert database.value(f"SELECT count(*) FROM {table} WHERE app_id = %s", app.key[0]) == 1
    assert publishing.public_slug(connection, app) == "trial"
    assert find_app(connection, "other").staging


def test_events_after_a_promotion(connection: Connection, database: Database) -> None:
    """Events that arrive later are kept and aggregated; a second promotion does nothing."""
    app = create(connection, "trial")
    store(database, client_of(app), 5)
    statistics.refresh(connection, time.sleep)
    promote_quickly(connection, app)
    store(database, client_of(app), 3, user="client_b")
    statistics.refresh(connection, time.sleep)
    overview = statistics.read_panel(connection, app, "overview", {}, datetime.now(timezone.utc))
    assert (overview["totals"]["events"], overview["totals"]["users"]) == (3, 1)
    with pytest.raises(NotStaging):
        promote_quickly(connection, find_app(connection, "trial"))
    with pytest.raises(NotStaging, match="a moment ago"):
        promote_quickly(connection, app)
    assert database.value("SELECT count(*) FROM events") == 3


def test_other_applications_cannot_be_promoted(connection: Connection, database: Database) -> None:
    """An application that is not for tests keeps its events."""
    app = create(connection, "real", staging=False)
    store(database, client_of(app), 1)
    with pytest.raises(NotStaging, match="real is not a staging application"):
        promote_quickly(connection, app)
    assert database.value("SELECT count(*) FROM events") == 1


def test_interrupted_promotion_can_be_repeated(connection: Connection, database: Database) -> None:
    """If the promotion is interrupted, the application is still a staging application."""
    app = create(connection, "trial")
    store(database, client_of(app), 3000)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        promote(connection, app, time.monotonic, lambda _: None, interrupt)
    again = find_app(connection, "trial")
    assert again.staging
    assert 0 < promote_quickly(connection, again) < 3000
