"""The addresses of the database: parameters of libpq, names, and the choice among several servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tkserver.storage.addresses import CONNECT_TIMEOUT, Addresses, Search, Sessions, State, resolve
from tkserver.storage.errors import ReadOnly, StorageError, Unavailable

READ_WRITE, READ_ONLY, STANDBY = State(False, False), State(True, False), State(True, True)

STATES = {"1": READ_WRITE, "2": READ_ONLY, "3": STANDBY}


def tried(dsn: str) -> list[tuple[str, str]]:
    """Return host or address, and port, of all addresses of a connection string."""
    found = [address.parameters for address in resolve(dsn).addresses]
    return [(parameters.get("hostaddr") or parameters.get("host", ""), parameters["port"]) for parameters in found]


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://127.0.0.1/x", [("127.0.0.1", "5432")]),
        ("postgresql://127.0.0.1:1/x", [("127.0.0.1", "1")]),
        ("postgresql://[::1]:1/x", [("::1", "1")]),
        ("postgresql:///x?host=/tmp", [("/tmp", "5432")]),
        ("postgresql:///x", [("", "5432")]),
        ("postgresql://127.0.0.1:1,127.0.0.2:2/x", [("127.0.0.1", "1"), ("127.0.0.2", "2")]),
        ("postgresql://127.0.0.1,127.0.0.2:2/x", [("127.0.0.1", "5432"), ("127.0.0.2", "2")]),
        ("host=127.0.0.1,127.0.0.2 port=7 dbname=x", [("127.0.0.1", "7"), ("127.0.0.2", "7")]),
        ("host=db.invalid hostaddr=127.0.0.3 dbname=x", [("127.0.0.3", "5432")]),
        ("hostaddr=127.0.0.3,127.0.0.4 dbname=x", [("127.0.0.3", "5432"), ("127.0.0.4", "5432")]),
    ],
)
def test_every_host_has_an_address(dsn: str, expected: list[tuple[str, str]]) -> None:
    """libpq gets one address at a time, so that it does not block to resolve names, and each has its own time limit."""
    assert tried(dsn) == expected


def test_names_stay_for_certificates_and_password_files() -> None:
    """libpq also gets the name of the host, which certificates and password files contain."""
    addresses = resolve("postgresql://localhost:1/x").addresses
    assert {address.parameters["hostaddr"] for address in addresses} <= {"127.0.0.1", "::1"}
    assert {address.parameters["host"] for address in addresses} == {"localhost"}


@pytest.mark.parametrize(
    ("variables", "dsn", "expected"),
    [
        ({"PGPORT": "7"}, "postgresql://127.0.0.1/x", [("127.0.0.1", "7")]),
        ({"PGPORT": "7"}, "postgresql://127.0.0.1:8/x", [("127.0.0.1", "8")]),
        ({"PGHOST": "127.0.0.1,127.0.0.2", "PGPORT": "7,8"}, "dbname=x", [("127.0.0.1", "7"), ("127.0.0.2", "8")]),
        ({"PGHOSTADDR": "127.0.0.9"}, "postgresql://db.invalid/x", [("127.0.0.9", "5432")]),
        ({"PGSERVICE": "events"}, "postgresql://127.0.0.1/x", [("127.0.0.1", "7")]),
        ({}, "postgresql://127.0.0.1/x?service=events", [("127.0.0.1", "7")]),
        ({"PGPORT": "8"}, "service=events", [("127.0.0.5", "7")]),
    ],
)
def test_environment_and_services_apply(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    dsn: str,
    expected: list[tuple[str, str]],
) -> None:
    """Variables and service files of libpq apply as in psql: the string, then the service, then the environment."""
    services = tmp_path / "services.conf"
    services.write_text("[events]\nhost=127.0.0.5\nport=7\n")
    for name, value in {"PGSERVICEFILE": str(services), **variables}.items():
        monkeypatch.setenv(name, value)
    assert tried(dsn) == expected


@pytest.mark.parametrize(
    ("dsn", "problem"),
    [
        ("postgresql://a,b/x?port=1,2,3", "3 port numbers to 2 hosts"),
        ("postgresql://a/x?hostaddr=127.0.0.1,127.0.0.2", "1 host names to 2 hostaddr values"),
        ("service=unknown", 'service "unknown" not found'),
        ("postgresql://127.0.0.1/x?target_session_attrs=fastest", "invalid target_session_attrs: fastest"),
        ("postgresql://no-such-host.invalid/x", "no-such-host.invalid cannot be resolved"),
        (f"postgresql://{'x' * 64}.example/x", "cannot be resolved"),
    ],
)
def test_unusable_addresses_are_explained(dsn: str, problem: str) -> None:
    """If there is no address, the error says why, and a later attempt may succeed."""
    with pytest.raises(Unavailable, match=problem):
        resolve(dsn)


def test_name_that_cannot_be_resolved_is_skipped() -> None:
    """If one of several names cannot be resolved, the other hosts are tried, and the error names both."""
    addresses = resolve("postgresql://no-such-host.invalid,127.0.0.1:1/x")
    search = Search(addresses, writes=True)
    (address,) = addresses.addresses
    search.note_failure(address, Unavailable("connection refused"))
    with pytest.raises(StorageError, match=r"no-such-host.invalid cannot .*; 127.0.0.1, port 1: connection refused"):
        search.fallback()


@pytest.mark.parametrize(
    ("parameter", "seconds"),
    [
        ("", CONNECT_TIMEOUT),
        ("?connect_timeout=30", 30),
        ("?connect_timeout=1", 2),
        ("?connect_timeout=0", CONNECT_TIMEOUT),
    ],
)
def test_every_address_has_a_time_limit(parameter: str, seconds: int) -> None:
    """``connect_timeout`` applies to each address. As in libpq, it is at least 2 seconds."""
    addresses = resolve(f"postgresql://127.0.0.1,127.0.0.2/x{parameter}").addresses
    assert [(address.timeout, address.parameters["connect_timeout"]) for address in addresses] == [(seconds,) * 2] * 2


def test_load_can_be_balanced() -> None:
    """With ``load_balance_hosts=random``, the addresses are tried in a random order."""
    shuffled = resolve(
        "postgresql://127.0.0.1:1,127.0.0.1:2/x?load_balance_hosts=random", lambda found: found.reverse()
    )
    assert [address.parameters["port"] for address in shuffled.addresses] == ["2", "1"]


def test_address_shows_no_password() -> None:
    """The representation of an address contains no password."""
    (address,) = resolve("postgresql://me:secret@127.0.0.1/x").addresses
    assert address.parameters["password"] == "secret"
    assert "secret" not in repr(address)


def choose(sessions: Sessions, ports: str, *, writes: bool) -> str | None:
    """Return the port of the server that is used.

    :param ports: of the servers, in order: a primary server has the port 1, a read-only one 2, a standby server 3.
    """
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    addresses = resolve(f"postgresql://{hosts}/x")
    search = Search(Addresses(addresses.addresses, (), sessions), writes=writes)
    for address in addresses.addresses:
        if search.accepts(address, STATES[address.parameters["port"]]):
            return str(address.parameters["port"])
    try:
        return str(search.fallback().parameters["port"])
    except StorageError:
        return None


@pytest.mark.parametrize(
    ("sessions", "reader", "writer"),
    [
        (Sessions.ANY, "1", "1"),
        (Sessions.READ_WRITE, "1", "1"),
        (Sessions.PRIMARY, "2", "1"),
        (Sessions.READ_ONLY, "3", None),
        (Sessions.STANDBY, "3", None),
        (Sessions.PREFER_STANDBY, "3", "1"),
    ],
)
def test_session_attributes_select_a_server(sessions: Sessions, reader: str, writer: str | None) -> None:
    """``target_session_attrs`` selects one of several servers. It accepts writes if the connection needs that."""
    assert choose(sessions, "321", writes=False) == reader
    assert choose(sessions, "321", writes=True) == writer


@pytest.mark.parametrize(
    ("sessions", "reader"), [(Sessions.ANY, "2"), (Sessions.READ_WRITE, None), (Sessions.PREFER_STANDBY, "2")]
)
def test_without_the_preferred_server_another_one_is_used(sessions: Sessions, reader: str | None) -> None:
    """If no server accepts writes, programs that only read use another one if it is acceptable."""
    assert choose(sessions, "2", writes=False) == reader
    assert choose(sessions, "2", writes=True) is None


def test_read_only_servers_are_named() -> None:
    """The error distinguishes servers that accept no writes from servers that do not respond."""
    addresses = resolve("postgresql://127.0.0.1:2,127.0.0.1:3/x")
    search = Search(addresses, writes=True)
    assert not any(search.accepts(address, STATES[address.parameters["port"]]) for address in addresses.addresses)
    with pytest.raises(ReadOnly, match=r"port 2: the database is read-only; .*port 3: .*a standby server"):
        search.fallback()
