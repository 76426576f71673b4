"""Other tools read statistics from views, with a role that can read nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta

import psycopg2
import pytest

from tests.support.client import App
from tests.support.database import Database, DatabaseServer
from tests.support.documents import blocks_of, text_of
from tests.support.raw_events import NOW, insert, random_event
from tkserver.insight import stats
from tkserver.insight.aggregator import run_once
from tkserver.insight.panels import Json
from tkserver.operations import retention
from tkserver.storage import migrations
from tkserver.storage.blocking import BlockingConnections, Connection, transaction

VIEWS = ("insight_daily", "insight_commands", "insight_versions")

ALL_RELATIONS = """
SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'S') ORDER BY 1
"""

COLUMNS = """
SELECT table_name, array_agg(column_name::text ORDER BY ordinal_position) FROM information_schema.columns
WHERE table_name = ANY (%s) GROUP BY 1
"""

OF_APP = ["org", "org_id", "app", "app_id", "timezone", "day", "ci"]
NUMBERS = ["events", "users", "outcomes", "failures"]

QUERY, CREATE_READER, CREATE_ROLE = [block for _, block in blocks_of(text_of("insight.md"), "sql")]


@pytest.fixture
def app(connection: Connection, database: Database) -> App:
    """An application with 1000 aggregated events, called ``my-cli``."""
    app = App().install(database)
    database.query("INSERT INTO orgs (org_id, name) VALUES (%s, 'Example')", app.org_id)
    database.query("INSERT INTO apps (org_id, app_id, name) VALUES (%s, %s, 'my-cli')", app.org_id, app.app_id)
    random_ = random.Random(1)
    with transaction(connection):
        insert(connection, app, [random_event(random_, id_) for id_ in range(1, 1001)])
    run_once(connection, lambda _: None)
    return app


def panel(connection: Connection, app: App, name: str, **parameters: str) -> Json:
    """Return a panel."""
    return stats.compute(connection, app.app_id, app.org_id, "my-cli", name, parameters, NOW)


def test_columns_are_documented(database: Database) -> None:
    """The views have exactly the columns that the document describes."""
    assert dict(database.query(COLUMNS, list(VIEWS))) == {
        "insight_daily": [*OF_APP, *NUMBERS],
        "insight_commands": [*OF_APP, "kind", "name", *NUMBERS],
        "insight_versions": [*OF_APP, "version", "os", "arch", *NUMBERS],
    }
    table = text_of("insight.md").partition("| column | in the views |")[2].partition("\n\n")[0]
    names = [name for line in table.splitlines() for name in line.split("|")[1:2]]
    described = {part.strip(" `") for name in names for part in name.split(",")}
    assert {*OF_APP, *NUMBERS, "kind", "name", "version", "os", "arch"} <= described


@pytest.mark.parametrize(("mode", "ci"), [("exclude", False), ("only", True)])
def test_days_are_those_of_the_overview(
    connection: Connection, database: Database, app: App, mode: str, ci: bool
) -> None:
    """``insight_daily`` has the numbers of each day of the overview, and no row for a day without events."""
    overview = panel(connection, app, "overview", days="400", ci=mode)
    expected = {day["day"]: (day["events"], day["users"], day["failures"]) for day in overview["days"] if day["events"]}
    found = database.query("SELECT day::text, events, users, failures, outcomes FROM insight_daily WHERE ci = %s", ci)
    assert {day: tuple(numbers) for day, *numbers, _ in found} == expected
    assert sum(outcomes for *_, outcomes in found) == overview["totals"]["outcomes"] > 0
    assert len(found) == len(expected)


def test_commands_are_those_of_the_panel(connection: Connection, database: Database, app: App) -> None:
    """``insight_commands`` has the numbers of each name on each day."""
    day = (NOW - timedelta(days=3)).date().isoformat()
    names = ("kind", "name", "events", "users", "outcomes", "failures")
    for mode, ci in (("exclude", False), ("only", True)):
        items = panel(connection, app, "commands", **{"from": day, "to": day, "ci": mode})["items"]
        expected = {tuple(item[name] for name in names) for item in items}
        sql = f"SELECT {', '.join(names)} FROM insight_commands WHERE app = 'my-cli' AND day = %s AND ci = %s"
        assert set(database.query(sql, day, ci)) == expected
        assert expected


def test_versions_are_those_of_the_panels(connection: Connection, database: Database, app: App) -> None:
    """``insight_versions`` has the events of each version and system, and the users of each on each day."""
    items = panel(connection, app, "versions", days="400")["items"]
    sums = "SELECT version, sum(events)::int FROM insight_versions WHERE NOT ci GROUP BY 1"
    assert dict(database.query(sums)) == {item["version"]: item["events"] for item in items}
    sql = "SELECT day::text, version, os, arch, users FROM insight_versions WHERE NOT ci ORDER BY events DESC LIMIT 3"
    for day, version, os, arch, users in database.query(sql):
        filters = {"version": version, "os": os, "arch": arch or ""}
        period = {"from": day, "to": day}
        assert panel(connection, app, "overview", **period, **filters)["totals"]["users"] == users > 1


def test_names_of_apps(connection: Connection, database: Database, app: App) -> None:
    """Rows have the names of application and organization; an application without a name has its id."""
    names = "SELECT DISTINCT org, app, timezone FROM {}"
    for view in VIEWS:
        assert database.query(names.format(view)) == [("Example", "my-cli", "UTC")]
    database.query("DELETE FROM apps")
    database.query("DELETE FROM orgs")
    for view in VIEWS:
        assert database.query(names.format(view)) == [(None, app.app_id, "UTC")]


def test_frozen_days_stay(connection: Connection, database: Database, app: App) -> None:
    """The views keep the numbers of days whose events were deleted."""
    before = {view: sorted(map(str, database.query(f"SELECT * FROM {view}"))) for view in VIEWS}
    retention.prune(connection, 1, lambda: 0.0, lambda _: None)
    assert database.value("SELECT count(*) FROM events") == 0
    assert {view: sorted(map(str, database.query(f"SELECT * FROM {view}"))) for view in VIEWS} == before


# --- the role


@contextmanager
def login(database: Database, statement: str) -> Iterator[Database]:
    """Create the role ``grafana``, and return the database as this role sees it."""
    database.query(statement)
    try:
        yield Database(database.dsn.replace("postgres@", "grafana@"))
    finally:
        database.query("DROP OWNED BY grafana")
        database.query("DROP ROLE grafana")


def test_reader_can_read_only_the_views(database: Database, app: App) -> None:
    """The role of the documentation can read the views, and no table, other view or sequence."""
    with login(database, CREATE_READER) as reader:
        assert reader.query(QUERY.replace("current_date", f"date '{NOW.date()}'"))
        for (relation,) in database.query(ALL_RELATIONS):
            if relation in VIEWS:
                assert reader.value(f"SELECT count(*) FROM {relation}")
            else:
                with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                    reader.query(f"SELECT * FROM {relation}")
        shown = "".join(str(row) for view in VIEWS for row in reader.query(f"SELECT * FROM {view}"))
    assert "client_" not in shown


def test_barrier_hides_other_rows(database: Database, app: App) -> None:
    """A function of the reader is not called with rows that a view does not contain."""
    spy = """
        CREATE FUNCTION pg_temp.spy(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001
        AS $$ BEGIN RAISE NOTICE '%', $1; RETURN true; END $$
    """
    hidden = """INSERT INTO insight_items (app, topic, key) SELECT app, 1, '["command","hidden"]' FROM insight_apps"""
    database.query(hidden)
    with login(database, CREATE_READER) as reader, closing(psycopg2.connect(reader.dsn)) as connection:
        with connection.cursor() as cursor:
            cursor.execute(spy)
            cursor.execute("SELECT name FROM insight_commands WHERE pg_temp.spy(name)")
        assert connection.notices
        assert "NOTICE:  hidden\n" not in connection.notices


def test_owner_without_the_right_to_create_roles(database_server: DatabaseServer, database: Database) -> None:
    """The owner of a database can migrate it without CREATEROLE; an administrator can create the role later."""
    database.query("ALTER ROLE tkserver_insight RENAME TO other_insight")
    database.query("CREATE ROLE plain LOGIN")
    try:
        with database_server.empty("OWNER plain") as own:
            own.query("GRANT ALL ON SCHEMA public TO plain")
            dsn = own.dsn.replace("postgres@", "plain@")
            migrations.migrate(dsn, BlockingConnections())
            assert own.value("SELECT to_regrole('tkserver_insight')") is None
            for _ in range(2):
                own.query(CREATE_ROLE)
            with login(own, CREATE_READER) as reader:
                assert reader.value("SELECT count(*) FROM insight_daily") == 0
            own.query("DROP OWNED BY tkserver_insight")
            own.query("DROP ROLE tkserver_insight")
    finally:
        database.query("DROP ROLE plain")
        database.query("ALTER ROLE other_insight RENAME TO tkserver_insight")
