"""Events with fixed times, which tests insert directly into the table."""

from __future__ import annotations

import json
import random
import uuid
from datetime import datetime, timedelta, timezone
from typing import Any

from tests.support.client import App
from tests.support.naive_statistics import RawEvent
from tkserver.storage.blocking import Connection, rows

NOW = datetime(2026, 3, 20, 12, tzinfo=timezone.utc)

VERSIONS = ("1.0.0", "1.1.0", "2.0.0-rc.1", "2.0.0", "weird")


def random_event(random_: random.Random, id_: int) -> RawEvent:
    """Return an event of the last 120 days. Some are late, some have an implausible clock."""
    received = NOW - timedelta(seconds=random_.randrange(120 * 86400))
    late = random_.choice([0, 0, 0, 5, 3600, 86400 * random_.random() * 40, 86400 * 100, -3600, -300])
    data: Any = {
        "command": random_.choice(["build", "test", "remote"]),
        "exit_code": random_.choice([0, 0, 1, 2, None]),
        "duration_ms": random_.choice([None, 0, random_.lognormvariate(3, 1), 12, -1]),
        "flags": random_.choice([None, [], ["--force", "-v=3", "x"], ["--force", "--force=1"], "--no"]),
    }
    data |= random_.choice(
        [{}, {}, {"subcommand": "add"}, {"success": random_.random() < 0.8}, {"error_type": "Timeout"}]
    )
    data = random_.choice(
        [data, data, data, {"feature": "cache", "method": "get"}, {"status": "x", "error_type": "IO"}, [1], None]
    )
    return RawEvent(
        id_,
        f"client_{random_.randrange(30)}",
        received - timedelta(seconds=late),
        received,
        random_.choice([None, False, False, True]),
        random_.choice(VERSIONS),
        random_.choice(["linux", "linux", "macos"]),
        random_.choice(["x86_64", "aarch64", None]),
        random_.choice(["bash", None]),
        random_.choice(["rust", "python"]),
        random_.choice(["command_execution", "custom_thing"]),
        data,
    )


def insert(connection: Connection, app: App, events: list[RawEvent]) -> None:
    """Store events."""
    for event in events:
        rows(
            connection,
            "INSERT INTO events (id, event_id, org_id, app_id, schema_version, timestamp, service_name,"
            " service_version, service_language, user_id, os, arch, ci, shell, event_type, event_data, sdk_version,"
            " transmission_timestamp, batch_size, retry_count, received_at)"
            " VALUES (%s, %s, %s, %s, '1', %s, 'x', %s, %s, %s, %s, %s, %s, %s, %s, %s, '1', now(), 1, 0, %s)",
            event.id, str(uuid.uuid4()), app.org_id, app.app_id, event.timestamp, event.version, event.language,
            event.user_id, event.os, event.arch, event.ci, event.shell, event.type, json.dumps(event.data),
            event.received_at,
        )  # fmt: skip
