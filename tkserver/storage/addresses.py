"""The addresses of the database: where every connection of the server and of the commands is opened.

libpq resolves names, hosts and the environment by itself, but not in a way that the reactor can use: it blocks while it
resolves a name, and has no time limit for each host of an asynchronous connection. Therefore this module does it, for
blocking connections as well, so that migrations, commands and the pool use the same server.
"""

from __future__ import annotations

import ipaddress
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from psycopg2.extensions import parse_dsn

from tkserver.storage.errors import ConnectionLost, ReadOnly, StorageError, Unavailable
from tkserver.storage.libpq import effective_parameters

CONNECT_TIMEOUT = 5
"""Seconds for one attempt to connect to one address, unless ``connect_timeout`` is set."""

_DEFAULTS = {
    "fallback_application_name": "tkserver",
    # Seconds. A silent peer is detected within about 11.
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    # Milliseconds. Keepalives do not detect a dead peer while sent data is not acknowledged; this does.
    "tcp_user_timeout": "10000",
}
"""libpq parameters for every connection, unless they are set."""

_FIXED = {
    # Statements contain UTF-8, and results are decoded from it, whatever the environment and the role say.
    "client_encoding": "UTF8",
    "target_session_attrs": "any",
}
"""libpq parameters for every connection. :class:`Search` selects the session, because it knows all addresses."""


@dataclass(frozen=True)
class Address:
    """An address of the database.

    :ivar name: for messages.
    :ivar timeout: seconds for an attempt to connect.
    :ivar parameters: of libpq, which then does not resolve a name. They may contain a password.
    """

    name: str
    timeout: int
    parameters: dict[str, Any] = field(repr=False)


class Sessions(Enum):
    """The sessions that are acceptable: the values of ``target_session_attrs`` in libpq."""

    ANY = "any"
    READ_WRITE = "read-write"
    READ_ONLY = "read-only"
    PRIMARY = "primary"
    STANDBY = "standby"
    PREFER_STANDBY = "prefer-standby"


SELECT_STATE = "SELECT current_setting('transaction_read_only') = 'on', pg_is_in_recovery()"
"""Returns the :class:`State` of a session."""


@dataclass(frozen=True)
class State:
    """The state of a session.

    :ivar read_only: it cannot write.
    :ivar standby: its server is a standby server.
    """

    read_only: bool
    standby: bool

    def __str__(self) -> str:
        if self.standby:
            return "the database server is a standby server"
        return "the database is read-only" if self.read_only else "the database server is a primary server"


@dataclass(frozen=True)
class Addresses:
    """All addresses of the database, in the order in which they are tried.

    :ivar problems: of host names that could not be resolved.
    """

    addresses: Sequence[Address]
    problems: Sequence[str]
    sessions: Sessions


_SUITABLE: dict[Sessions, Callable[[State], bool]] = {
    Sessions.ANY: lambda state: not state.read_only,
    Sessions.READ_WRITE: lambda state: not state.read_only,
    Sessions.READ_ONLY: lambda state: state.read_only,
    Sessions.PRIMARY: lambda state: not state.standby,
    Sessions.STANDBY: lambda state: state.standby,
    Sessions.PREFER_STANDBY: lambda state: state.standby,
}
"""Which sessions end the search. Of several servers, tkserver always prefers one that accepts writes."""

_PREFERENCES = (Sessions.ANY, Sessions.PREFER_STANDBY)
"""If no session ends the search, any other is acceptable."""


class Search:
    """The search for a session among all addresses.

    :param writes: true if a session is of no use unless it can write.
    """

    def __init__(self, addresses: Addresses, *, writes: bool) -> None:
        self._addresses = addresses
        self._writes = writes
        self._acceptable: list[Address] = []
        self._problems: list[tuple[Address, StorageError]] = []

    @property
    def needs_state(self) -> bool:
        """False if every session is accepted."""
        several = len(self._addresses.addresses) > 1
        return several or self._writes or self._addresses.sessions is not Sessions.ANY

    def accepts(self, address: Address, state: State) -> bool:
        """Return true if the session at an address is the right one."""
        is_usable = not (self._writes and state.read_only)
        if is_usable and _SUITABLE[self._addresses.sessions](state):
            return True
        if is_usable and self._addresses.sessions in _PREFERENCES:
            self._acceptable.append(address)
        else:
            wanted = self._addresses.sessions
            hint = "" if wanted in _PREFERENCES else f" (target_session_attrs={wanted.value})"
            self.note_failure(address, (ReadOnly if state.read_only else Unavailable)(f"{state}{hint}"))
        return False

    def note_failure(self, address: Address, error: StorageError) -> None:
        """Note that there is no session at an address."""
        self._problems.append((address, error))

    def fallback(self) -> Address:
        """Return the first address whose session is acceptable, after all have been tried.

        :raise StorageError: if there is none.
        """
        if self._acceptable:
            return self._acceptable[0]
        names, problems = self._addresses.problems, self._problems
        if not names and len(problems) == 1:
            raise problems[0][1]
        is_read_only = any(isinstance(error, ReadOnly) for _, error in problems)
        text = "; ".join([*names, *(f"{address.name}: {error}" for address, error in problems)])
        raise (ReadOnly if is_read_only else ConnectionLost)(text)


def resolve(dsn: str, shuffle: Callable[[list[Address]], None] = random.shuffle) -> Addresses:
    """Return the addresses of a database. Blocks.

    :param dsn: a libpq URL or connection string. The environment and service files add to it, as for every program.
    :param shuffle: brings the addresses into a random order, for ``load_balance_hosts``.
    :raise Unavailable: if none is known now.
    """
    effective = effective_parameters(dsn)
    timeout, sessions = _timeout(effective.get("connect_timeout", "")), _sessions(effective["target_session_attrs"])
    common = {name: effective.get(name, default) for name, default in _DEFAULTS.items()}
    common |= {**parse_dsn(dsn), **_FIXED}
    addresses: list[Address] = []
    problems: list[str] = []
    for host, hostaddr, port in _hosts(effective):
        try:
            found = [hostaddr] if hostaddr else _resolve_name(host)
        except OSError:
            problems.append(f"the host name {host} cannot be resolved")
            continue
        addresses += [_address(common, host, address, port, timeout) for address in found]
    if not addresses:
        raise Unavailable("; ".join(problems))
    if effective.get("load_balance_hosts") == "random":
        shuffle(addresses)
    return Addresses(addresses, problems, sessions)


def _hosts(effective: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield name, address and port of each host; name or address may be empty. libpq has checked their numbers."""
    names, addresses = effective.get("host", "").split(","), effective.get("hostaddr", "").split(",")
    ports, size = effective["port"].split(","), max(len(names), len(addresses))
    columns = [values * size if len(values) == 1 else values for values in (names, addresses, ports)]
    for name, address, port in zip(*columns, strict=True):
        yield name.strip(), address.strip(), port.strip() or "5432"


def _resolve_name(host: str) -> list[str]:
    """Return the addresses of a host; an empty string if it is the directory of a Unix socket.

    :raise OSError: if the name cannot be resolved now.
    """
    if not host or host.startswith(("/", "@")):
        return [""]
    with suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError:  # a label is empty or too long
        raise OSError from None
    return list(dict.fromkeys(str(address[4][0]) for address in found))


def _address(common: dict[str, str], host: str, address: str, port: str, timeout: int) -> Address:
    """Return an address. The host name stays among the parameters, for certificates and password files."""
    own = {"host": host, "hostaddr": address, "port": port, "connect_timeout": timeout}
    parameters = {name: value for name, value in {**common, **own}.items() if value}
    place = address if host in ("", address) else f"{host} ({address})" if address else host
    return Address(f"{place or 'Unix socket'}, port {port}", timeout, parameters)


def _timeout(value: str) -> int:
    """Return the seconds for an attempt to connect. libpq knows no limit; the server always needs one."""
    try:
        seconds = int(value)
    except ValueError:
        return CONNECT_TIMEOUT
    return max(seconds, 2) if seconds > 0 else CONNECT_TIMEOUT


def _sessions(value: str) -> Sessions:
    try:
        return Sessions(value)
    except ValueError:
        raise Unavailable(f"invalid target_session_attrs: {value}") from None
