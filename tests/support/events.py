"""Valid events for tests, in which single fields can be replaced."""

from __future__ import annotations

import uuid
from typing import Any, Final

MISSING: Final = object()
"""The value of an override that removes the key."""


def make_event(**overrides: Any) -> dict[str, Any]:
    """Return a valid event with all keys of the contract. Only the id differs between calls.

    :param overrides: values by path, with two underscores as separator, for example ``service__name="x"``.
    """
    event: dict[str, Any] = {
        "schema_version": "1.0.0",
        "event_id": str(uuid.uuid4()),
        "timestamp": "2026-01-02T03:04:05.678901Z",
        "service": {"name": "my-cli", "version": "1.2.3", "language": "rust", "language_version": "1.85.0"},
        "user_id": "client_0123456789abcdef",
        "session_id": "sess_0123456789abcdef",
        "environment": {"os": "linux", "os_version": "6.1.0", "arch": "x86_64", "ci": False, "shell": "bash"},
        "event": {"type": "command_execution", "category": "success", "data": {"command": "build", "duration_ms": 42}},
        "metadata": {
            "sdk_version": "0.3.0",
            "transmission_timestamp": "2026-01-02T03:04:10Z",
            "batch_size": 1,
            "retry_count": 0,
        },
    }
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
