"""The ``Host`` header: there is exactly one, and the admin port responds only if it knows the value."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_twisted

from tests.support.client import App, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.peer import connect
from tests.support.queries import stored_ids
from tests.support.raw_requests import signed_request
from tests.support.server import running_server
from tkserver.server.supervisor import Supervisor


async def head_and_body(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Send a request after which the server closes the connection, and return the response."""
    peer = await connect(port)
    peer.write(request)
    head, _, body = (await peer.read_all()).partition(b"\r\n\r\n")
    return head, body


async def status(port: int, *hosts: str, target: str = "/", version: str = "1.1") -> int:
    """Return the status of the response to a request with these ``Host`` headers."""
    lines = [f"GET {target} HTTP/{version}", *(f"Host: {host}" for host in hosts), "Connection: close", "", ""]
    head, _ = await head_and_body(port, "\r\n".join(lines).encode("latin-1"))
    return int(head.split(b" ")[1])


class TestNumberOfHosts:
    """The public port and the admin port require exactly one ``Host`` header in HTTP/1.1."""

    @pytest.mark.parametrize(
        ("version", "hosts", "expected"),
        [
            ("1.1", [], 400),
            ("1.1", ["a", "a"], 400),
            ("1.1", ["a", "b", "c"], 400),
            ("1.0", ["a", "b"], 400),
            ("1.1", ["a"], 200),
            ("1.1", [""], 200),
            ("1.0", [], 200),
            ("1.0", ["a"], 200),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_public_port(self, shared_server: Supervisor, version: str, hosts: list[str], expected: int) -> None:
        """Another number of headers gets a 400, except that HTTP/1.0 needs none."""
        assert await status(shared_server.port, *hosts, target="/health", version=version) == expected

    @pytest_twisted.ensureDeferred
    async def test_format_of_the_error(self, shared_server: Supervisor) -> None:
        """The error has the format of all errors, and the connection is closed."""
        head, body = await head_and_body(shared_server.port, b"GET /health HTTP/1.1\r\n\r\n")
        assert b"X-Clacks-Overhead: GNU Terry Pratchett\r\n" in head
        assert b"Connection: close\r\n" in head
        assert b'"code":"bad_request"' in body

    @pytest.mark.parametrize("hosts", [b"", b"Host: x\r\nHost: y\r\n"], ids=["none", "two"])
    @pytest_twisted.ensureDeferred
    async def test_nothing_is_stored(
        self, shared_server: Supervisor, shared_database: Database, app: App, hosts: bytes
    ) -> None:
        """A signed batch with another number of headers is not stored."""
        request = signed_request(app, batch([make_event()])).replace(b"Host: x\r\n", hosts)
        head, _ = await head_and_body(shared_server.port, request)
        assert head.startswith(b"HTTP/1.1 400 ")
        assert not stored_ids(shared_database, app)

    @pytest_twisted.ensureDeferred
    async def test_admin_port(self, shared_server: Supervisor) -> None:
        """The same applies to the admin port."""
        port = shared_server.admin_port
        assert [await status(port), await status(port, "localhost", "localhost")] == [400, 400]
        assert await status(port, version="1.0") == 200


ALLOWED = "Metrics.example.org, prometheus:3001, [2001:db8::1]:3001, 2001:db8::2, 192.0.2.1"


@pytest_twisted.async_yield_fixture(scope="module")
async def allowing_port(shared_database: Database) -> AsyncIterator[int]:
    """The admin port of a server with a list of allowed hosts."""
    async with running_server(shared_database, TK__ADMIN__ALLOWED_HOSTS=ALLOWED) as server:
        yield server.admin_port


class TestHostsOfAdminPort:
    """The admin port responds with 421 to host names that it does not know (DNS rebinding)."""

    @pytest.mark.parametrize(
        "host",
        ["localhost", "LocalHost:99", "localhost.", "localhost:", "127.0.0.1", "127.1.2.3:3001", "[::1]", "[::1]:3001"],
    )
    @pytest_twisted.ensureDeferred
    async def test_loopback(self, shared_server: Supervisor, host: str) -> None:
        """Loopback names and addresses are allowed, with any port."""
        assert await status(shared_server.admin_port, host) == 200

    @pytest.mark.parametrize(
        "host",
        [
            *("attacker.example", "attacker.example:3001", "localhost.attacker.example", "127.0.0.1.attacker.example"),
            *("", ":3001", "localhost:x", "localhost, attacker.example", "attacker.example, localhost"),
            *("http://localhost", "user@localhost", "localhost/", "[::1", "::1", "127.1", "2130706433", "0x7f000001"),
            *("203.0.113.5", "[::ffff:203.0.113.5]", "\xff", "localhost\xff", "local host", "[localhost]"),
        ],
    )
    @pytest.mark.parametrize("path", ["/metrics", "/", "/nothing"])
    @pytest_twisted.ensureDeferred
    async def test_other_hosts(self, shared_server: Supervisor, host: str, path: str) -> None:
        """Any other value gets a 421, whatever the path."""
        assert await status(shared_server.admin_port, host, target=path) == 421

    @pytest_twisted.ensureDeferred
    async def test_format_of_the_error(self, shared_server: Supervisor) -> None:
        """The error has the format of all errors, names the setting, and contains no metrics."""
        request = b"GET /metrics HTTP/1.1\r\nHost: attacker.example\r\nConnection: close\r\n\r\n"
        _, body = await head_and_body(shared_server.admin_port, request)
        assert b'"code":"misdirected_request"' in body
        assert b"TK__ADMIN__ALLOWED_HOSTS" in body
        assert b"tkserver_" not in body

    @pytest_twisted.ensureDeferred
    async def test_target_with_host(self, shared_server: Supervisor) -> None:
        """The host in a request target is checked as well."""
        port = shared_server.admin_port
        assert await status(port, "localhost", target="http://attacker.example/metrics") == 421
        assert await status(port, "localhost", target="http://localhost:3001/metrics") == 200

    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            ("metrics.example.org", 200),
            ("METRICS.example.org.:80", 200),
            ("prometheus:3001", 200),
            ("prometheus", 421),
            ("prometheus:3002", 421),
            ("[2001:db8::1]:3001", 200),
            ("[2001:DB8:0::1]:3001", 200),
            ("[2001:db8::1]:1", 421),
            ("[2001:db8::2]:1", 200),
            ("192.0.2.1:1", 200),
            ("[::ffff:192.0.2.1]", 200),
            ("localhost", 200),
            ("other.example.org", 421),
        ],
    )
    @pytest_twisted.ensureDeferred
    async def test_setting(self, allowing_port: int, host: str, expected: int) -> None:
        """Names in the setting are allowed, only with their port if they have one."""
        assert await status(allowing_port, host) == expected

    @pytest_twisted.ensureDeferred
    async def test_address_of_the_port(self, shared_database: Database) -> None:
        """The address of the admin port is allowed."""
        async with running_server(shared_database, TK__ADMIN__HOST="0.0.0.0") as server:
            port = server.admin_port
            assert [await status(port, host) for host in (f"0.0.0.0:{port}", "10.0.0.1", "a.example")] == [
                200,
                421,
                421,
            ]
