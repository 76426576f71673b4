"""What ``docs/privacy.md`` says about the log and the database: no addresses, no values of clients, no passwords."""

from __future__ import annotations

import re
from contextlib import closing
from itertools import count
from pathlib import Path

import psycopg2
import pytest
import requests as http

from tests.support.blocking_client import is_ready
from tests.support.client import DIALECTS, App, batch
from tests.support.command import Command
from tests.support.database import Database
from tests.support.documents import text_of
from tests.support.events import make_event
from tests.support.json_log import parse_json_log
from tests.support.marked import ADDRESS, MARK, USER, MarkedClient, marked_app, marked_event
from tests.support.process import Twistd
from tests.support.quarantined import put
from tests.support.stored import store
from tests.support.waiting import wait_for

COLUMNS = """
SELECT table_schema, table_name, column_name, udt_name FROM information_schema.columns
WHERE table_schema NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2, 3
"""

TABLES = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1"

FORWARDED = ("203.0.113.7", "2001:db8::cafe", "198.51.100.23")
ADDRESSES = ("127.0.0.1", *FORWARDED)
"""The address of the tests, and those in the headers of proxies."""

HEADERS = {
    "X-Forwarded-For": ", ".join(FORWARDED),
    "X-Real-IP": FORWARDED[0],
    "Forwarded": f'for={FORWARDED[0]}, for="[{FORWARDED[1]}]:4711";by={FORWARDED[2]}',
    "User-Agent": "unmistakable-browser/1.0",
    "Cookie": "unmistakable-cookie=1",
}


def test_no_addresses(directory: Path, database: Database) -> None:
    """Neither the database nor the log contains the address of a client, whatever the response to its request was."""
    app = App().install(database)
    with Twistd(directory, {"TK__DATABASE__URL": database.dsn, "TK__SERVER__LOG_LEVEL": "debug"}) as server:
        server.wait_until_ready()
        statuses = [send(server.url, app, *request) for request in requests_of_all_kinds()]
        assert statuses == [200, 200, 200, 207, 401, 204]
        send_command = Command.on(database, directory, TK__SERVER__PORT=str(server.port))
        assert send_command("send").code == 0
        columns = database.query(COLUMNS)
        assert {"events", "api_tokens", "apps", "nonces"} <= {table for _, table, _, _ in columns}
        for schema, table, column, data_type in columns:
            assert data_type not in ("inet", "cidr")
            for text in (*ADDRESSES, "unmistakable"):
                rows = database.value(
                    f'SELECT count(*) FROM "{schema}"."{table}" WHERE strpos("{column}"::text, %s) > 0', text
                )
                assert rows == 0, f"{table}.{column} contains {text}"
        assert database.value("SELECT count(*) FROM events") == 5
        server.stop()
        log = "\n".join(line for line in server.log.splitlines() if "listens on" not in line)
    for text in (*FORWARDED, "unmistakable", "127.0.0.1", app.token, app.secret, "client_0123456789abcdef"):
        assert text not in log


def test_every_table_is_listed(database: Database) -> None:
    """The document says of every table what it contains and for how long."""
    table = text_of("privacy.md").partition("## What is stored")[2].partition("\n\n- ")[0]
    listed = set(re.findall("`(\\w+)`", table))
    tables = {name for (name,) in database.query(TABLES)}
    assert tables - listed == {name for name in tables if "yoyo" in name}


@pytest.mark.timeout(300)
def test_users_are_only_where_the_document_says(directory: Path, database: Database) -> None:
    """Only the listed tables contain the id of a user, before and after an erasure."""
    command = Command.on(database, directory)
    app = App().install(database)
    store(database, app, 3, user="client_unmistakable")
    put(database, app, '{"user_id":"client_unmistakable"}', user="client_unmistakable")
    command("stats", app.app_id, code=0)

    def tables() -> set[str]:
        sql = 'SELECT count(*) FROM "{}"."{}" WHERE strpos("{}"::text, \'client_unmistakable\') > 0'
        return {
            table
            for schema, table, column, _ in database.query(COLUMNS)
            if database.value(sql.format(schema, table, column))
        }

    assert tables() == {"events", "quarantine", "insight_users"}
    command("erase", "--user", "client_unmistakable", code=0)
    assert tables() == set()


def requests_of_all_kinds() -> list[tuple[str, dict[str, str], list[dict[str, object]]]]:
    """Return one request in each dialect, one with an invalid event, one with an invalid token, and Do Not Track."""
    valid = [(dialect, HEADERS, [make_event()]) for dialect in DIALECTS]
    partial: list[dict[str, object]] = [make_event(), make_event(service__name="")]
    return [
        *valid,
        (DIALECTS[0], HEADERS, partial),
        (DIALECTS[0], {**HEADERS, "Authorization": "Bearer unknown"}, [make_event()]),
        (DIALECTS[0], {**HEADERS, "DNT": "1"}, [make_event()]),
    ]


def send(url: str, app: App, dialect: str, changes: dict[str, str], events: list[dict[str, object]]) -> int:
    """Send a batch with changed headers, and return the status of the response."""
    body = batch(list(events))
    headers = {**app.headers(body, dialect), **changes}
    return http.post(url + app.path, data=body, headers=headers, timeout=30).status_code


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_values_of_clients(directory: Path, database: Database, log_format: str) -> None:
    """The log contains no value that a client sends, whatever fails, and no password."""
    app, other, limited = (marked_app().install(database) for _ in range(3))
    dsn = database.dsn.replace("://postgres@", f"://postgres:{MARK}_password@")
    assert MARK in dsn
    settings = {
        "TK__DATABASE__URL": dsn,
        "TK__REDIS__URL": f"redis://{MARK}_user:{MARK}_password@127.0.0.1:1",
        "TK__RATE_LIMIT__PRO_RPM": "1",
        "TK__RATE_LIMIT__AUTH_FAILURES_BURST": "60",
        "TK__SERVER__TRUSTED_PROXIES": "127.0.0.1",
        "TK__SERVER__LOG_LEVEL": "debug",
        "TK__SERVER__LOG_FORMAT": log_format,
        "TK__INGEST__MAX_BODY_BYTES": "100000",
        "TK__INGEST__COMMIT_TIMEOUT": "0.5",
    }
    with Twistd(directory, settings) as server:
        server.wait_until_ready()
        client = MarkedClient(server.url)
        client.send_requests_of_all_kinds(app, other)
        client.send_malformed_requests(server.port)
        assert client.codes >= EXPECTED_CODES
        erased = Command.on(database, directory)("erase", "--user", USER, code=0)
        assert client.send(app, [marked_event()]).json()["accepted"] == 1
        cause_database_errors(database, client, app)
        interrupt_database(database, client, app)
        cause_internal_error(database, client, other)
        exceed_limits(database, client, limited)
        assert server.stop() == 0
        log = server.log
    if log_format == "json":
        parse_json_log(log)
    assert len(re.findall("Traceback", log)) == 1  # of the internal error
    for text in (MARK, ADDRESS, *client.signatures):
        assert text not in log
    assert MARK not in erased.out + erased.errors


EXPECTED_CODES = {
    *(
        "200",
        "204",
        "207",
        "404",
        "405",
        "all_events_rejected",
        "batch_size_mismatch",
        "empty_batch",
        "invalid_encoding",
    ),
    *("invalid_json", "invalid_nonce", "invalid_signature", "invalid_timestamp", "invalid_token", "nonce_reused"),
    *("missing_authorization", "missing_signature", "payload_too_large", "timestamp_out_of_window", "token_mismatch"),
    *("unsupported_encoding", "unsupported_media_type"),
}
"""Error codes and statuses that the requests must cause."""

OTHER_USER = f"anon_{MARK}"
"""A user who is not erased."""


def cause_database_errors(database: Database, client: MarkedClient, app: App) -> None:
    """Let the database reject events with messages that contain their values."""
    for state, status in (("23514", 400), ("22P02", 400), ("P0001", 503), ("XX001", 503)):
        database.query(
            "CREATE OR REPLACE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$BEGIN RAISE EXCEPTION 'no: %', NEW USING ERRCODE = '{state}'; END$$"
        )
        database.query(
            "CREATE OR REPLACE TRIGGER reject BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION reject()"
        )
        assert client.send(app, [marked_event(user_id=OTHER_USER)]).status_code == status
    database.query("DROP TRIGGER reject ON events")


def interrupt_database(database: Database, client: MarkedClient, app: App) -> None:
    """Lock the table, terminate the connections of the server, and reject new ones for some time."""
    name = database.value("SELECT current_database()")
    maintenance = Database(database.dsn.replace(f"/{name}?", "/postgres?"))
    terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
    with closing(psycopg2.connect(database.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE events")
        assert client.send(app, [marked_event(user_id=OTHER_USER)]).status_code == 503
        maintenance.query(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        maintenance.query(terminate, name)
    wait_for(lambda: not is_ready(client.url))
    assert client.send(app, [marked_event(user_id=OTHER_USER)]).status_code == 503
    maintenance.query(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    wait_for(lambda: is_ready(client.url))


def exceed_limits(database: Database, client: MarkedClient, app: App) -> None:
    """Exceed the quota, the rate limit, and the limit of authentication failures."""
    insert = "INSERT INTO apps (org_id, app_id, name, monthly_quota) VALUES (%s, %s, 'limited', 0)"
    database.query(insert, app.org_id, app.app_id)
    database.query("UPDATE api_tokens SET tier = 'pro' WHERE token = %s", app.token)
    limits = [client.send(app, [marked_event(user_id=OTHER_USER)]).json()["error"]["code"] for _ in range(2)]
    assert limits == ["quota_exceeded", "rate_limited"]
    tokens = (f"Bearer {MARK}{number}" for number in count())
    wait_for(lambda: client.send(app, [marked_event()], changes={"Authorization": next(tokens)}).status_code == 429)


def cause_internal_error(database: Database, client: MarkedClient, app: App) -> None:
    """Change a table so that the server fails with an unexpected exception."""
    database.query("ALTER TABLE api_tokens ALTER secret DROP NOT NULL")
    database.query("UPDATE api_tokens SET secret = NULL WHERE token = %s", app.token)
    wait_for(lambda: client.send(app, [marked_event(user_id=OTHER_USER)]).status_code == 500)


@pytest.mark.parametrize("variable", ["TK__DATABASE__URL", "TK__REDIS__URL", "TK__SERVER__PORT"])
def test_no_values_of_settings(directory: Path, variable: str) -> None:
    """The error message about an invalid setting does not contain its value, which may be secret."""
    server = Twistd(directory, {variable: f"unknown://{MARK}:{MARK}@localhost"}).launch()
    assert server.wait() == 1
    assert variable in server.log
    assert MARK not in server.log
