"""Events, and the information about program and system that all events of a program share."""

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
    """An event without ``metadata``, which the client adds when it sends the event."""

    schema_version: str
    event_id: UUID
    timestamp: datetime
    service: Service
    user_id: str
    environment: Environment
    event: Occurrence
    session_id: str | None = None


def service(name: str, version: str) -> Service:
    """Return the description of a program that runs on this version of Python."""
    return Service(name, version, "python", platform.python_version())


def environment_here(variables: Mapping[str, str] = os.environ) -> Environment:
    """Return the description of this system, which contains no host name, no user name and no path."""
    return Environment(
        os=platform.system().lower()[:50] or "unknown",
        os_version=platform.release()[:100] or None,
        arch=platform.machine()[:50] or None,
        ci=bool(variables.get("CI")),
        shell=PurePath(variables.get("SHELL", "")).name[:50] or None,
    )


class EventBuilder:
    """Creates the events of one program and one user.

    :param user_id: must begin with ``client_`` or ``anon_``. The default is a random id, so that the events of two
        builders cannot be linked.
    :param environment: the default is :func:`environment_here`.
    :param now: returns the current time, with a time zone.
    :param new_id: returns a new random UUID.
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
        """Return an event that happened now.

        :param data: anything that can be encoded as JSON.
        :raise TypeError: if ``data`` cannot be encoded.
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
