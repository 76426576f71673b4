"""What docs/privacy.md says is not kept is not kept."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
import requests as http

from tests.support.blocking_client import is_ready
from tests.support.client import DIALECTS, App, batch
from tests.support.command import Command
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.json_log import parse_json_log
from tests.support.marked import ADDRESS, MARK, USER, MarkedClient, marked_app, marked_event
from tests.support.process import Twistd
from tests.support.waiting import wait_for

COLUMNS = """
SELECT table_schema, table_name, column_name, udt_name FROM information_schema.columns
WHERE table_schema NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2, 3
"""

FORWARDED = ("203.0.113.7", "2001:db8::cafe", "198.51.100.23")
ADDRESSES = ("127.0.0.1", *FORWARDED)
"""Ours, and those that proxies tell."""

HEADERS = {
    "X-Forwarded-For": ", ".join(FORWARDED),
    "X-Real-IP": FORWARDED[0],
    "Forwarded": f'for={FORWARDED[0]}, for="[{FORWARDED[1]}]:4711";by={FORWARDED[2]}',
    "User-Agent": "a-very-special-browser/1.0",
    "Cookie": "a-very-special-cookie=1",
}


def test_addresses(directory: Path, database: Database) -> None:
    """No column of any table, and no line of the log, has the address of a client, whatever became of its request."""
    app = App().install(database)
    with Twistd(directory, {"TK__DATABASE__URL": database.dsn, "TK__SERVER__LOG_LEVEL": "debug"}) as server:
        wait_for(lambda: is_ready(server.url))
        statuses = [send(server.url, app, *request) for request in each_kind()]
        assert statuses == [200, 200, 200, 207, 401, 204]
        send_command = Command.on(database, directory, TK__SERVER__PORT=str(server.port))
        assert send_command("send").code == 0
        columns = database.query(COLUMNS)
        assert {"events", "api_tokens", "apps", "nonces"} <= {table for _, table, _, _ in columns}
        for schema, table, column, kind in columns:
            assert kind not in ("inet", "cidr")
            for text in (*ADDRESSES, "a-very-special"):
                found = database.value(
                    f'SELECT count(*) FROM "{schema}"."{table}" WHERE strpos("{column}"::text, %s) > 0', text
                )
                assert found == 0, f"{table}.{column} holds {text}"
        assert database.value("SELECT count(*) FROM events") == 5
        server.stop()
        said = "\n".join(line for line in server.log.splitlines() if "listens on" not in line)
    for text in (*FORWARDED, "a-very-special", "127.0.0.1", app.token, app.secret, "client_0123456789abcdef"):
        assert text not in said


def each_kind() -> list[tuple[str, dict[str, str], list[dict[str, object]]]]:
    """One of each kind: the dialects, one of two events refused, a token that is none, and do not track."""
    good = [(dialect, HEADERS, [make_event()]) for dialect in DIALECTS]
    partial: list[dict[str, object]] = [make_event(), make_event(service__name="")]
    return [
        *good,
        (DIALECTS[0], HEADERS, partial),
        (DIALECTS[0], {**HEADERS, "Authorization": "Bearer none"}, [make_event()]),
        (DIALECTS[0], {**HEADERS, "DNT": "1"}, [make_event()]),
    ]


def send(url: str, app: App, dialect: str, changes: dict[str, str], events: list[dict[str, object]]) -> int:
    body = batch(list(events))
    headers = {**app.headers(body, dialect), **changes}
    return http.post(url + app.path, data=body, headers=headers, timeout=30).status_code


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_marked_values(directory: Path, database: Database, log_format: str) -> None:
    """Nothing that a client sends is ever seen in the log, however it fails; nor are passwords."""
    app, other, slow = marked_app().install(database), marked_app().install(database), marked_app().install(database)
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
        wait_for(lambda: is_ready(server.url))
        client = MarkedClient(server.url)
        client.send_all_kinds(app, other)
        client.send_no_http(server.port)
        assert client.codes >= EXPECTED
        erased = Command.on(database, directory)("erase", "--user", USER, code=0)
        assert client.send(app, [marked_event()]).json()["accepted"] == 1
        refused_by_the_database(database, client, app)
        without_the_database(database, client, app)
        broken(database, client, other)
        limited(database, client, slow)
        assert server.stop() == 0
        said = server.log
    if log_format == "json":
        parse_json_log(said)
    assert len(re.findall("Traceback", said)) == 1  # of what is broken
    for text in (MARK, ADDRESS, *client.signatures):
        assert text not in said
    assert MARK not in erased.out + erased.errors


EXPECTED = {
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
"""What at least must have come of it."""

KEPT = f"anon_{MARK}"
"""A user who is not erased."""


def refused_by_the_database(database: Database, client: MarkedClient, app: App) -> None:
    """In words that quote what was to be stored."""
    for state, status in (("23514", 400), ("22P02", 400), ("P0001", 503), ("XX001", 503)):
        database.query(
            "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$BEGIN RAISE EXCEPTION 'no: %', NEW USING ERRCODE = '{state}'; END$$"
        )
        database.query(
            "CREATE OR REPLACE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
        assert client.send(app, [marked_event(user_id=KEPT)]).status_code == status
    database.query("DROP TRIGGER refuse ON events")


def without_the_database(database: Database, client: MarkedClient, app: App) -> None:
    """Stuck, its connections cut while it is being waited for, and away."""
    name = database.value("SELECT current_database()")
    beside = Database(database.dsn.replace(f"/{name}?", "/postgres?"))
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
    with closing(psycopg2.connect(database.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE events")
        assert client.send(app, [marked_event(user_id=KEPT)]).status_code == 503
        beside.query(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        beside.query(cut, name)
    wait_for(lambda: not is_ready(client.url))
    assert client.send(app, [marked_event(user_id=KEPT)]).status_code == 503
    beside.query(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    wait_for(lambda: is_ready(client.url))


def limited(database: Database, client: MarkedClient, app: App) -> None:
    """By quota, by rate, and for guessing."""
    insert = "INSERT INTO apps (org_id, app_id, name, monthly_quota) VALUES (%s, %s, 'limited', 0)"
    database.query(insert, app.org_id, app.app_id)
    database.query("UPDATE api_tokens SET tier = 'pro' WHERE token = %s", app.token)
    limits = [client.send(app, [marked_event(user_id=KEPT)]).json()["error"]["code"] for _ in range(2)]
    assert limits == ["quota_exceeded", "rate_limited"]
    guess = {"Authorization": f"Bearer {MARK}"}
    wait_for(lambda: client.send(app, [marked_event()], changes=guess).status_code == 429)


def broken(database: Database, client: MarkedClient, app: App) -> None:
    """A table that is not what it should be, and a fault of ours with it."""
    database.query("ALTER TABLE api_tokens ALTER secret DROP NOT NULL")
    database.query("UPDATE api_tokens SET secret = NULL WHERE token = %s", app.token)
    wait_for(lambda: client.send(app, [marked_event(user_id=KEPT)]).status_code == 500)


@pytest.mark.parametrize("variable", ["TK__DATABASE__URL", "TK__REDIS__URL", "TK__SERVER__PORT"])
def test_settings(directory: Path, variable: str) -> None:
    """What is wrong with a setting is said without its value, which may be secret."""
    server = Twistd(directory, {variable: f"none://{MARK}:{MARK}@localhost"}).launch()
    assert server.wait() == 1
    assert variable in server.log
    assert MARK not in server.log
