"""The example configurations of nginx and Caddy, in front of a real server."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.deploy.proxy import KINDS, Proxy, program
from tests.support.blocking_client import is_ready
from tests.support.client import BOTH, App, batch
from tests.support.database import Database, DatabaseServer
from tests.support.events import make_event
from tests.support.process import Twistd
from tests.support.waiting import wait_for

MAX_BODY_BYTES = 12_582_912
HTTP_1 = "--http1.1"
HTTP_2 = "--http2"
UPLOADS = pytest.mark.parametrize(
    "upload", [("--data-binary", "@-"), ("-X", "POST", "-T", "-")], ids=["length", "no length"]
)


@pytest.fixture(scope="module")
def database(database_server: DatabaseServer) -> Iterator[Database]:
    with database_server.migrated() as database:
        yield database


@pytest.fixture(scope="module")
def server(scratch: Path, database: Database) -> Iterator[Twistd]:
    """A server that trusts its proxy, and allows five failed authentications from one address."""
    directory = Path(mkdtemp(prefix="behind", dir=scratch))
    directory.chmod(0o755)
    settings = {
        "TK__DATABASE__URL": database.dsn,
        "TK__SERVER__TRUSTED_PROXIES": "127.0.0.1",
        "TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE": "1",
        "TK__RATE_LIMIT__AUTH_FAILURES_BURST": "5",
    }
    with Twistd(directory, settings) as server:
        wait_for(lambda: is_ready(server.url))
        yield server


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    if program(request.param) is None:
        pytest.skip(f"needs {request.param}")
    return str(request.param)


@pytest.fixture(scope="module")
def proxy(kind: str, scratch: Path, server: Twistd) -> Iterator[Proxy]:
    directory = scratch / kind
    directory.mkdir()
    with Proxy(kind, directory, server.port) as proxy:
        yield proxy


@pytest.fixture
def app(database: Database) -> App:
    return App().install(database)


def headers(app: App, body: bytes, **more: str) -> list[str]:
    """Return the options of curl for the headers of a signed request."""
    values = {**app.headers(body, BOTH), **{name.replace("_", "-"): value for name, value in more.items()}}
    return [option for name, value in values.items() for option in ("-H", f"{name}: {value}")]


@pytest.mark.parametrize("version", [HTTP_1, HTTP_2])
@UPLOADS
def test_body_arrives_unchanged(
    proxy: Proxy, app: App, database: Database, version: str, upload: tuple[str, ...]
) -> None:
    """A compressed body arrives as it was signed, with and without a declared length, over each version of HTTP."""
    body = gzip.compress(batch([make_event() for _ in range(1000)]))
    signed = headers(app, body, Content_Encoding="gzip")
    status, content = proxy.curl(app.path, version, *upload, *signed, body=body)
    assert (status, json.loads(content)["accepted"]) == (200, 1000)
    assert database.value("SELECT count(*) FROM events WHERE app_id = %s", app.app_id) == 1000


@UPLOADS
@pytest.mark.parametrize("length", [MAX_BODY_BYTES + 1, 2 * MAX_BODY_BYTES])
def test_too_large_body_is_rejected(proxy: Proxy, app: App, upload: tuple[str, ...], length: int) -> None:
    """A body that is too large is rejected as the contract describes, by the proxy or by the server.

    The test uses HTTP/1.1: over HTTP/2, curl does not always read a response that arrives before it has sent the body.
    """
    body = b" " * length
    status, content = proxy.curl(app.path, HTTP_1, *upload, *headers(app, body), "-H", "Expect:", body=body)
    assert (status, json.loads(content)["error"]["code"]) == (413, "payload_too_large")


def test_failed_authentications_are_limited_by_address(proxy: Proxy, kind: str) -> None:
    """The limit of failed authentications applies to the client's address, even if it sends X-Forwarded-For."""
    limited, other = {"nginx": ("127.0.1.2", "127.0.1.3"), "caddy": ("127.0.2.2", "127.0.2.3")}[kind]
    for forged in [*(f"198.51.100.{number}" for number in range(5)), None]:
        stranger = App()
        sent = headers(stranger, b"{}", **({"X_Forwarded_For": forged} if forged else {}))
        status, _ = proxy.curl(stranger.path, HTTP_1, "--data-binary", "@-", *sent, source=limited, body=b"{}")
        assert status == (401 if forged else 429)
    status, _ = proxy.curl(
        stranger.path, HTTP_1, "--data-binary", "@-", *headers(stranger, b"{}"), source=other, body=b"{}"
    )
    assert status == 401


def test_proxy_log_contains_no_address(proxy: Proxy, kind: str, app: App) -> None:
    """The log of the proxy contains no client address. The log of nginx contains the id of each request."""
    body = batch([make_event()])
    sent = headers(app, body, X_Request_ID="sent-by-the-client")
    assert proxy.curl(app.path, "--data-binary", "@-", *sent, source="127.0.9.9", body=body)[0] == 200
    assert proxy.curl("/health", source="127.0.9.9") == (200, b'{"status":"healthy","version":"0.1.0"}')
    if kind == "nginx":
        wait_for(lambda: "sent-by-the-client" in proxy.log)
    assert "127.0.9.9" not in proxy.log


def test_unavailable_server_makes_sdks_retry(kind: str, directory: Path) -> None:
    """If no server runs, the proxy sends a response after which SDKs retry, and logs nothing of the request."""
    app, body = App(), b"{}"
    sent = headers(app, body)
    with Proxy(kind, directory, 1) as proxy:
        status, content = proxy.curl(app.path, HTTP_1, "--data-binary", "@-", *sent, source="127.0.9.9", body=body)
        if kind == "nginx":
            assert (status, json.loads(content)["retry_after"]) == (503, 5)
        else:
            assert status == 502
            wait_for(lambda: "connection refused" in proxy.log)
        for secret in ("127.0.9.9", app.token, app.headers(body)["X-Signature"], sent[-1].split()[-1]):
            assert secret not in proxy.log
