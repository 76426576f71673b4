"""``tkserver dashboard``."""

from __future__ import annotations

import socket
import webbrowser
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from tests.support.command import InProcessCommand
from tests.support.database import Database
from tests.support.ports import reserved_port
from tkserver.cli import dashboard
from tkserver.storage.sign_in import LINK_PREFIX, hash_token, is_token

HASHES = "SELECT token_hash FROM dashboard_links"
EVERYTHING_STORED = "SELECT to_jsonb(l)::text FROM dashboard_links AS l"


def token_of(url: str) -> str:
    """Return the token in a link."""
    return url.partition("?token=")[2]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The links that the command opens in a browser. There is a screen, and the user is not root."""
    links: list[str] = []
    monkeypatch.setattr(webbrowser, "open", links.append)
    monkeypatch.setattr(dashboard, "has_browser", lambda *_: True)
    return links


# --- the link


def test_prints_a_link(tkserver: InProcessCommand, database: Database) -> None:
    """Standard output is the link, and nothing else. The database contains only the hash of its token."""
    done = tkserver("dashboard", "--no-browser")
    (link,) = done.out.splitlines()
    token = token_of(link)
    assert link == f"http://127.0.0.1:3001/dashboard/sign-in?token={token}"
    assert is_token(token, LINK_PREFIX)
    assert [bytes(stored) for (stored,) in database.query(HASHES)] == [hash_token(token)]
    assert token[4:] not in database.value(EVERYTHING_STORED)
    assert "five minutes" in done.errors
    assert token not in done.errors


def test_links_differ(tkserver: InProcessCommand) -> None:
    """Each link has its own token, of 256 bits."""
    tokens = {token_of(tkserver("dashboard", "--json").json["url"]) for _ in range(5)}
    assert len(tokens) == 5
    assert {len(token) for token in tokens} == {len(LINK_PREFIX) + 64}


def test_lifetime(tkserver: InProcessCommand, database: Database) -> None:
    """The link is valid for five minutes by the clock of the database."""
    printed = datetime.fromisoformat(tkserver("dashboard", "--json").json["expires_at"])
    assert database.query("SELECT expires_at, expires_at - created_at FROM dashboard_links") == [
        (printed.astimezone(timezone.utc), timedelta(minutes=5))
    ]


@pytest.mark.parametrize(
    ("arguments", "stored"),
    [
        ((), (None, True)),
        (("--share",), (None, True)),
        (("--read-only",), (None, False)),
        (("my-cli",), ("my-cli", False)),
        (("my-cli", "--read-only"), ("my-cli", False)),
        (("my-cli", "--share"), ("my-cli", True)),
    ],
)
def test_roles(
    tkserver: InProcessCommand, database: Database, arguments: tuple[str, ...], stored: tuple[str | None, bool]
) -> None:
    """Without an application, a session sees all and may share; with one, it may only see. Options change that."""
    tkserver("apps", "create", "my-cli")
    printed = tkserver("dashboard", *arguments, "--json").json
    assert (printed["app"], printed["can_share"]) == stored
    sql = "SELECT a.name, can_share FROM dashboard_links LEFT JOIN apps AS a USING (org_id, app_id)"
    assert database.query(sql) == [stored]


def test_unknown_application(tkserver: InProcessCommand, database: Database) -> None:
    """No link is created for an application that does not exist."""
    assert "nothing" in tkserver("dashboard", "nothing", code=3).errors
    assert database.query(HASHES) == []


def test_expired_rows_are_deleted(tkserver: InProcessCommand, database: Database) -> None:
    """A new link removes the links and sessions that have expired."""
    for table in ("dashboard_links", "dashboard_sessions"):
        database.query(
            f"INSERT INTO {table} (token_hash, can_share, expires_at)"
            " VALUES (sha256('old'), true, now()), (sha256('new'), true, now() + interval '1 minute')"
        )
    tkserver("dashboard", "--no-browser")
    assert database.value("SELECT count(*) FROM dashboard_links") == 2
    assert database.value("SELECT count(*) FROM dashboard_sessions") == 1


# --- the address


@pytest.mark.parametrize(
    ("settings", "base"),
    [
        ({"TK__ADMIN__PORT": "3101"}, "http://127.0.0.1:3101"),
        ({"TK__ADMIN__HOST": "::1"}, "http://[::1]:3001"),
        ({"TK__ADMIN__HOST": "localhost"}, "http://localhost:3001"),
        ({"TK__ADMIN__HOST": "0.0.0.0", "TK__DASHBOARD__ENABLED": "true"}, "http://127.0.0.1:3001"),
        ({"TK__ADMIN__HOST": "::", "TK__DASHBOARD__ENABLED": "true"}, "http://[::1]:3001"),
        ({"TK__ADMIN__HOST": "192.0.2.1", "TK__DASHBOARD__ENABLED": "true"}, "http://192.0.2.1:3001"),
        ({"TK__DASHBOARD__URL": "https://Stats.example.org/dashboard/"}, "https://stats.example.org"),
        ({"TK__DASHBOARD__URL": "https://stats.example.org:8443", "TK__ADMIN__PORT": "0"}, "https://stats.example.org:8443"),
    ],
)  # fmt: skip
def test_address(tkserver: InProcessCommand, settings: dict[str, str], base: str) -> None:
    """The address is that in the settings, or that of the admin port."""
    assert (
        tkserver("dashboard", "--json", code=0, **settings)
        .json["url"]
        .startswith(f"{base}/dashboard/sign-in?token=tkl_")
    )


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"TK__ADMIN__PORT": "none"}, "set TK__ADMIN__PORT"),
        ({"TK__ADMIN__PORT": "0"}, "--url"),
        ({"TK__ADMIN__HOST": "0.0.0.0"}, "TK__DASHBOARD__ENABLED=true"),
        ({"TK__DASHBOARD__ENABLED": "false"}, "TK__DASHBOARD__ENABLED=true"),
    ],
)
def test_no_dashboard(tkserver: InProcessCommand, database: Database, settings: dict[str, str], advice: str) -> None:
    """If the settings do not say where the dashboard is, the error says what to do. The option needs no settings."""
    assert advice in tkserver("dashboard", code=1, **settings).errors
    assert database.query(HASHES) == []
    printed = tkserver("dashboard", "--url", "http://127.0.0.1:4000/", "--json", code=0, **settings).json
    assert printed["url"].startswith("http://127.0.0.1:4000/dashboard/sign-in?")


@pytest.mark.parametrize(
    "url", ["stats.example.org", "ftp://a", "https://", "https://a/b", "https://a?b", "https://u:p@a", "http://a:x"]
)
def test_invalid_address(tkserver: InProcessCommand, url: str) -> None:
    """An address that is not that of a server is rejected, as an option and as a setting."""
    assert "such as https://stats.example.org" in tkserver("dashboard", "--url", url, code=2).errors
    assert "TK__DASHBOARD__URL: " in tkserver("dashboard", code=2, TK__DASHBOARD__URL=url).errors


def test_server_that_does_not_run(tkserver: InProcessCommand) -> None:
    """If no server listens at the address, the command says how to start it, after the link. JSON stays as it is."""
    with reserved_port() as port, socket.create_server(("127.0.0.1", 0)) as server:
        done = tkserver("dashboard", "--no-browser", code=0, TK__ADMIN__PORT=str(port))
        assert f"No server responds at http://127.0.0.1:{port}. To start it, run: twistd -n tkserver" in done.errors
        assert len(done.out.splitlines()) == 1
        assert tkserver("dashboard", "--json", code=0, TK__ADMIN__PORT=str(port)).errors == ""
        listening = str(server.getsockname()[1])
        assert "No server" not in tkserver("dashboard", "--no-browser", code=0, TK__ADMIN__PORT=listening).errors


# --- the browser


def test_opens_a_browser(tkserver: InProcessCommand, opened: list[str]) -> None:
    """The link is printed, and opened in a browser."""
    assert opened == tkserver("dashboard").out.splitlines()
    assert len(opened) == 1


@pytest.mark.parametrize("option", ["--no-browser", "--json"])
def test_opens_no_browser(tkserver: InProcessCommand, opened: list[str], option: str) -> None:
    """An option prevents that, and programs that read JSON need no browser."""
    tkserver("dashboard", option)
    assert opened == []


@pytest.mark.parametrize(
    ("environment", "user", "platform", "expected"),
    [
        ({"DISPLAY": ":0"}, 1000, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, 1000, "linux", True),
        ({}, 501, "darwin", True),
        ({}, 1000, "linux", False),
        ({"DISPLAY": ""}, 1000, "linux", False),
        ({"DISPLAY": ":0"}, 0, "linux", False),
        ({}, 0, "darwin", False),
        ({"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "192.0.2.1 1 192.0.2.2 22"}, 1000, "linux", False),
        ({"SSH_TTY": "/dev/ttys1"}, 501, "darwin", False),
    ],
)
def test_has_browser(environment: Mapping[str, str], user: int, platform: str, expected: bool) -> None:
    """A browser is opened only where the user sees it, and never as root."""
    assert dashboard.has_browser(environment, user, platform) is expected


# --- sign out


def test_sign_out(tkserver: InProcessCommand, database: Database) -> None:
    """All sessions and links end. The number is that of the sessions that were valid."""
    tkserver("dashboard", "--no-browser")
    database.query(
        "INSERT INTO dashboard_sessions (token_hash, can_share, expires_at) VALUES (sha256('a'), true, now()),"
        " (sha256('b'), true, now() + interval '1 day'), (sha256('c'), false, now() + interval '30 days')"
    )
    assert "Ended sessions: 2." in tkserver("dashboard", "sign-out").out
    assert tkserver("dashboard", "sign-out", "--json").json == {"ended_sessions": 0}
    assert database.query("SELECT FROM dashboard_links UNION ALL SELECT FROM dashboard_sessions") == []


@pytest.mark.parametrize("option", [("--share",), ("--read-only",), ("--no-browser",), ("--url", "http://a")])
def test_sign_out_has_no_options(tkserver: InProcessCommand, option: tuple[Any, ...]) -> None:
    """Options of links make no sense with it."""
    assert "sign-out" in tkserver("dashboard", "sign-out", *option, code=2).errors
