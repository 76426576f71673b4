"""The reasons why events are in quarantine: for the command line and the dashboard."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from tkserver.wire.api_errors import EVENT_ID_CONFLICT, EVENT_TOO_LARGE, UNSUPPORTED_SCHEMA
from tkserver.wire.event import MAX_EVENT_BYTES


class Reason(NamedTuple):
    """Quarantined events of an application with the same reason, from the same version of an SDK.

    :ivar app: the name, or the id if the application has no name.
    :ivar events: the number of events.
    :ivar times: how often they were received.
    :ivar dropped: the number of events of the application that were deleted to make room for newer ones.
    """

    app: str
    app_id: str
    org_id: str
    code: str
    message: str
    sdk: str | None
    sdk_version: str | None
    events: int
    times: int
    first_received_at: datetime
    last_received_at: datetime
    dropped: int


# The messages about long events differ only in the length.
REASONS = f"""
SELECT
    coalesce(a.name, q.app_id::text), q.app_id::text, q.org_id::text, q.code, max(q.message), q.sdk, q.sdk_version,
    count(*), sum(q.times)::bigint, min(q.received_at), max(q.last_received_at), max(u.dropped)
FROM quarantine AS q JOIN quarantine_usage AS u USING (app_id, org_id) LEFT JOIN apps AS a USING (app_id, org_id)
WHERE {{condition}}
GROUP BY
    a.name, q.app_id, q.org_id, q.code, CASE WHEN q.code <> '{EVENT_TOO_LARGE}' THEN q.message END, q.sdk, q.sdk_version
ORDER BY max(q.last_received_at) DESC, count(*) DESC, q.code, max(q.message)
"""
"""Selects the reasons of quarantined events, latest first: the columns of :class:`Reason`.

Text to be formatted with ``condition``, an SQL condition for the table ``quarantine AS q``.
"""

_FIELDS = {
    "service.name": "Set service_name to the name of the program where it creates the SDK",
    "service.version": "Set service_version to the version of the program where it creates the SDK",
    "user_id": "Send an anonymous id, which begins with client_ or anon_",
    "event.type": "Use a shorter, fixed name for the type of the event, and put details into its data",
}
"""Advice about single fields, for developers of programs that use an SDK."""


def advice(code: str, message: str) -> str:
    """Return what to do about events with a reason."""
    if code == EVENT_TOO_LARGE:
        return (
            f"Send less data in each event: at most {MAX_EVENT_BYTES} bytes of JSON. These events cannot be replayed."
        )
    if code == EVENT_ID_CONFLICT:
        return "Create a random id (UUID version 4) for each event: another application has used the same ids."
    if code == UNSUPPORTED_SCHEMA:
        return "Upgrade tkserver to a version that supports this schema, then run: tkserver quarantine replay"
    path, _, _ = message.partition(": ")
    field = _FIELDS.get(path, f"Correct {path} in the program that sends these events")
    return f"{field}. If a rule of tkserver was wrong: upgrade it, then run: tkserver quarantine replay"
