"""The status of applications for the dashboard: last event, quota, and quarantine."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import msgspec
from msgspec import Struct

from tkserver.insight.catalog import AppState
from tkserver.insight.facts import clean
from tkserver.storage.app_status import LATEST_QUARANTINED, MAX_COUNTED, STATUS
from tkserver.storage.quarantine_reasons import REASONS, Reason, advice
from tkserver.storage.quota import Allowance

WARN_SHARE = 0.8
"""The share of a quota from which on pages warn."""

MAX_REASONS = 50
MAX_LATEST = 20
"""The numbers of reasons and of single events on a page."""

_MAX_TEXT = 16_384
"""Bytes. The types of longer quarantined events are not looked for."""

_REASONS = f"{REASONS.format(condition='q.app_id = %s AND q.org_id = %s')} LIMIT {MAX_REASONS + 1}"


class Query(Protocol):
    """Executes a statement, and returns its rows."""

    def __call__(self, sql: str, parameters: Sequence[object] = ()) -> Awaitable[list[tuple[Any, ...]]]: ...


class AppStatus(NamedTuple):
    """The status of an application.

    :ivar last_event_at: when the last event was received; ``None`` if there is none.
    :ivar allowance: how much of the quota is used this month; ``None`` without a quota.
    :ivar quarantined: the number of events that were quarantined in the last days, at most ``MAX_COUNTED``.
    """

    last_event_at: datetime | None
    allowance: Allowance | None
    quarantined: int

    @property
    def quota_level(self) -> str:
        """``exhausted`` or ``warning``; empty if there is nothing to warn about."""
        allowance = self.allowance
        if allowance is None:
            return ""
        if not allowance.left:
            return "exhausted"
        return "warning" if allowance.used >= WARN_SHARE * allowance.quota else ""

    @property
    def quota_share(self) -> float:
        """The used share of the quota, from 0 to 1."""
        allowance = self.allowance
        if allowance is None:
            return 0.0
        return 1.0 if not allowance.left else allowance.used / allowance.quota

    @property
    def quarantined_is_minimum(self) -> bool:
        """True if there may be more quarantined events than were counted."""
        return self.quarantined >= MAX_COUNTED


class ReasonGroup(NamedTuple):
    """Quarantined events with the same reason.

    :ivar advice: what to do.
    """

    reason: Reason
    advice: str

    @property
    def sdk(self) -> str:
        """The SDK that sent the events, with its version; empty if it is not known."""
        return " ".join(text for text in (self.reason.sdk, self.reason.sdk_version) if text)


class Quarantined(NamedTuple):
    """A quarantined event, without anything that it contains but its type.

    :ivar type: empty if it is not known.
    """

    received_at: datetime
    code: str
    message: str
    times: int
    type: str


class Quarantine(NamedTuple):
    """The quarantine of an application.

    :ivar groups: events by their reason, latest first, at most :data:`MAX_REASONS`.
    :ivar has_more: true if there are more reasons.
    :ivar dropped: the number of events that were deleted because the quarantine was full.
    """

    groups: list[ReasonGroup]
    has_more: bool
    latest: list[Quarantined]
    dropped: int


class StatusReader:
    """Reads the status of applications.

    :param query: uses a connection of the admin port, and never one of ingest.
    """

    def __init__(self, query: Query) -> None:
        self._query = query

    async def of(self, apps: Sequence[AppState]) -> list[AppStatus]:
        """Return the status of each application."""
        rows = await self._query(STATUS, ([app.app_id for app in apps], [app.org_id for app in apps]))
        found = {(row[0], row[1]): _status(*row[2:]) for row in rows}
        return [found[app.app_id, app.org_id] for app in apps]

    async def quarantine(self, app: AppState) -> Quarantine:
        """Return the quarantine of an application."""
        key = app.app_id, app.org_id
        reasons = [Reason(*row) for row in await self._query(_REASONS, key)]
        latest = await self._query(LATEST_QUARANTINED, (_MAX_TEXT, *key, MAX_LATEST)) if reasons else []
        return Quarantine(
            [ReasonGroup(reason, advice(reason.code, reason.message)) for reason in reasons[:MAX_REASONS]],
            len(reasons) > MAX_REASONS,
            [Quarantined(at, code, message, times, event_type(text)) for at, code, message, times, text in latest],
            max((reason.dropped for reason in reasons), default=0),
        )


def _status(
    last: datetime | None, quota: int | None, month: Any, used: int | None, now: datetime, quarantined: int
) -> AppStatus:
    allowance = None if quota is None else Allowance.read(quota, month, used or 0, now)
    return AppStatus(last, allowance, quarantined)


class _Occurrence(Struct):
    type: str


class _Event(Struct):
    event: _Occurrence


_decoder = msgspec.json.Decoder(_Event)


def event_type(text: str | None) -> str:
    """Return the type of a quarantined event, as pages can show it; empty if it is not known."""
    try:
        return clean(_decoder.decode(text or "").event.type)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return ""
