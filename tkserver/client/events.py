"""Events, made with what can be known without asking: when, by what, where."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import PurePath
from uuid import UUID, uuid4

import msgspec
from msgspec import Raw, Struct

from tkserver.wire.event import Environment, Occurrence, Service

SCHEMA_VERSION = "1.0.0"


class Event(Struct, frozen=True, omit_defaults=True):
    """An event as the contract has it, but for ``metadata``: the client adds that when it sends it."""

    schema_version: str
    event_id: UUID
    timestamp: datetime
    service: Service
    user_id: str
    environment: Environment
    event: Occurrence
    session_id: str | None = None


def service(name: str, version: str) -> Service:
    """A program that is written in Python, and runs on this one."""
    return Service(name, version, "python", platform.python_version())


def environment_here(variables: Mapping[str, str] = os.environ) -> Environment:
    """The machine that this runs on. Holds no host name, no user name and no path."""
    return Environment(
        os=platform.system().lower()[:50] or "unknown",
        os_version=platform.release()[:100] or None,
        arch=platform.machine()[:50] or None,
        ci=bool(variables.get("CI")),
        shell=PurePath(variables.get("SHELL", "")).name[:50] or None,
    )


class EventBuilder:
    """Makes the events of one program and one user.

    :param user_id: begins with ``client_`` or ``anon_``. One that is left out is random, so that nothing links the
        events of two builders.
    :param environment: that of this machine, where it is left out.
    :param now: the time; with an offset.
    :param new_id: a random UUID, another one with each call.
    """

    def __init__(
        self,
        service: Service,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        environment: Environment | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
        new_id: Callable[[], UUID] = uuid4,
    ) -> None:
        self._service = service
        self._user_id = user_id or f"anon_{new_id().hex}"
        self._session_id = session_id
        self._environment = environment or environment_here()
        self._now = now
        self._new_id = new_id

    def event(self, event_type: str, data: object = None, *, category: str | None = None) -> Event:
        """Something that happened just now.

        :param data: anything that is JSON.
        :raise TypeError: when it is not.
        """
        return Event(
            schema_version=SCHEMA_VERSION,
            event_id=self._new_id(),
            timestamp=self._now(),
            service=self._service,
            user_id=self._user_id,
            environment=self._environment,
            event=Occurrence(event_type, Raw(msgspec.json.encode(data)), category),
            session_id=self._session_id,
        )
