"""What docs/privacy.md says is not kept is not kept."""

from __future__ import annotations

from pathlib import Path

import requests as http

from tests.client import DIALECTS, App, batch
from tests.command import Command
from tests.database import Database
from tests.events import make_event
from tests.process import Twistd, wait_for
from tests.test_lifecycle import ready

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
        wait_for(lambda: ready(server.url))
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
