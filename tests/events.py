"""Events for tests."""

from __future__ import annotations

import copy
import uuid
from typing import Any

MISSING: Any = object()
"""As an override: without that key."""

_EVENT: dict[str, Any] = {
    "schema_version": "1.0.0",
    "timestamp": "2026-01-02T03:04:05.678901Z",
    "service": {"name": "my-cli", "version": "1.2.3", "language": "rust"},
    "user_id": "client_0123456789abcdef",
    "environment": {"os": "linux", "arch": "x86_64"},
    "event": {"type": "command_executed", "category": "usage", "data": {"command": "build", "duration_ms": 12.5}},
    "metadata": {
        "sdk_version": "0.3.0",
        "transmission_timestamp": "2026-01-02T03:05:00Z",
        "batch_size": 1,
        "retry_count": 0,
    },
}


def make_event(**overrides: Any) -> dict[str, Any]:
    """A valid event with an id of its own.

    :param overrides: values by dotted path, with ``__`` for the dot: ``service__name="x"``.
    """
    event = {**copy.deepcopy(_EVENT), "event_id": str(uuid.uuid4())}
    for path, value in overrides.items():
        *parents, key = path.split("__")
        target = event
        for parent in parents:
            target = target[parent]
        if value is MISSING:
            del target[key]
        else:
            target[key] = value
    return event
