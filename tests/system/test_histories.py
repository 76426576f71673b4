"""Random histories: whatever happens to events and processes, all panels are equal to a naive computation.

The events go through HTTP to a real server, whose process aggregates them in the background.
"""

from __future__ import annotations

import os
import random
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.aggregation import ENABLED, aggregating_process, wait_until_active, wait_until_aggregated
from tests.support.blocking_client import post_batch
from tests.support.client import App, batch
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.naive_statistics import RawEvent
from tests.support.panels import check_panels
from tests.support.process import Twistd
from tests.support.raw_events import VERSIONS, insert, random_event
from tkserver.insight import aggregator
from tkserver.operations import erasure, retention, statistics
from tkserver.operations.apps import find_app
from tkserver.storage.blocking import BlockingConnections, Connection, rows

EXAMPLES = int(os.environ.get("TEST_HISTORIES", 6))
"""The number of histories. To search for errors, use some hundreds."""

USERS = 6
MAX_AGE = 88
"""Days. Events that are sent are not older."""

RETENTION = 95
"""Days. Between the oldest events that are sent and the newest ones that are deleted, there are days without events."""

NOT_COMPARED_AFTER_PRUNING = frozenset(("days_to_half",))
"""Values that need the users of frozen days."""

ZONES = ("UTC", "Asia/Kathmandu", "America/New_York", "Pacific/Auckland")

_EVENTS = """
SELECT id, user_id, timestamp, received_at, ci, service_version, os, arch, shell, service_language, event_type,
    event_data
FROM events WHERE app_id = %s ORDER BY id
"""


class History:
    """The events of a new application, and what happens to them.

    :ivar events: the events that count, also those that were deleted because of their age.
    """

    def __init__(self, server: Twistd, database: Database, connection: Connection) -> None:
        self.server = server
        self.database = database
        self.connection = connection
        self.app = App().install(database)
        self.zone = "UTC"
        self.is_pruned = False
        self.erased: set[str] = set()
        self.old: list[RawEvent] = []
        sql = "INSERT INTO apps (org_id, app_id, name) VALUES (%s, %s, %s)"
        database.query(sql, self.app.org_id, self.app.app_id, self.app.app_id)

    @property
    def stored(self) -> list[RawEvent]:
        """The events in the table, except those that arrived while their user was being erased."""
        found = [RawEvent(*row) for row in rows(self.connection, _EVENTS, self.app.app_id)]
        return [event for event in found if event.user_id not in self.erased]

    # --- what can happen

    def send(self, seed: int) -> None:
        """Send a batch of new events."""
        random_ = random.Random(seed)
        events = [self._new_event(random_) for _ in range(random_.randint(1, 30))]
        assert post_batch(self.server.url, self.app, batch(events)) in (200, 207)

    def _new_event(self, random_: random.Random) -> dict[str, Any]:
        event = random_event(random_, 0)
        age = random_.choice(
            [random_.uniform(0, 3), random_.uniform(0, MAX_AGE), random_.uniform(91, 400), -0.01, -0.1]
        )
        return make_event(
            timestamp=(datetime.now(timezone.utc) - timedelta(days=age)).isoformat(),
            user_id=self._user(random_.randrange(USERS)),
            service__version=event.version, service__language=event.language,
            environment__os=event.os, environment__arch=event.arch, environment__ci=event.ci,
            environment__shell=event.shell, event__type=event.type, event__data=event.data,
        )  # fmt: skip

    def _user(self, number: int) -> str:
        return f"client_{self.app.app_id}_{number}"

    def store_old(self, seed: int) -> None:
        """Store events as if the server had received them long ago. None of them is sent again after a deletion."""
        random_ = random.Random(seed)
        if not self.is_pruned:
            insert(self.connection, self.app, [self._old_event(random_) for _ in range(random_.randint(1, 10))])

    def _old_event(self, random_: random.Random) -> RawEvent:
        ((number, now),) = rows(self.connection, "SELECT nextval(pg_get_serial_sequence('events', 'id')), now()")
        received = now - timedelta(days=random_.uniform(RETENTION + 5, RETENTION + 60))
        late = timedelta(days=random_.choice([0, 0, random_.uniform(0, 40), -0.005, -1, 200]))
        user = self._user(random_.randrange(USERS))
        return replace(random_event(random_, number), user_id=user, received_at=received, timestamp=received - late)

    def erase(self, seed: int) -> None:
        """Erase a user. Servers that do not know it yet may still store events."""
        user = self._user(seed % USERS)
        self.old = [_anonymous(event) if event.user_id == user else event for event in self.old]
        app = find_app(self.connection, self.app.app_id)
        erasure.erase(self.connection, user, app, time.monotonic, lambda _: None)
        self.erased.add(user)

    def prune(self, _: int) -> None:
        """Delete old events. Their days are frozen. A user without any other event counts as new on return."""
        wait_until_aggregated(self.database, self.server)
        before = {event.id: event for event in self.stored}
        app = find_app(self.connection, self.app.app_id)
        retention.set_retention(self.connection, app, RETENTION)
        retention.prune(self.connection, None, time.monotonic, time.sleep)
        retention.set_retention(self.connection, app, None)  # otherwise, a server that starts also deletes events
        left = {event.id for event in self.stored}
        known = {event.user_id for event in before.values() if event.id in left}
        deleted = [event for event in before.values() if event.id not in left]
        self.old += [event if event.user_id in known else _anonymous(event) for event in deleted]
        self.is_pruned = True

    def kill(self, seed: int) -> None:
        """Kill the aggregating process, possibly in a transaction."""
        wait_until_active(self.database, self.server)
        pid = aggregating_process(self.server)
        self.send(seed)
        time.sleep(seed % 150 / 1000)
        with suppress(ProcessLookupError):  # the process of the last time
            os.kill(pid, signal.SIGKILL)

    def restart(self, seed: int) -> None:
        """Stop or kill the server, and start it again."""
        self.server.kill() if seed % 2 else self.server.stop()
        self.server.start()
        self.server.wait_until_ready()

    def rebuild(self, _: int) -> None:
        """Compute the aggregates again. The server or this process does so."""
        statistics.start_rebuild(self.connection, find_app(self.connection, self.app.app_id))

    def aggregate(self, _: int) -> None:
        """Aggregate like ``tkserver stats``, while the server does so as well."""
        aggregator.run_once(self.connection, time.sleep)

    def wait(self, _: int) -> None:
        """Wait until all events are aggregated."""
        wait_until_aggregated(self.database, self.server)

    def change_zone(self, seed: int) -> None:
        """Change the time zone of the application, unless there are frozen days, which stay in the old time zone."""
        if not self.is_pruned:
            self.zone = ZONES[seed % len(ZONES)]
            statistics.set_timezone(self.connection, find_app(self.connection, self.app.app_id), self.zone)

    # --- comparison

    def check(self, queries: list[dict[str, str]]) -> None:
        """Compare all panels with the naive computation."""
        wait_until_aggregated(self.database, self.server)
        events, now = self.old + self.stored, datetime.now(timezone.utc)
        for query in queries:
            if self.is_pruned:  # sets of users over frozen days are not known
                query = {**query, "days": str(min(int(query["days"]), 30))}
            ignored = NOT_COMPARED_AFTER_PRUNING if self.is_pruned else frozenset[str]()
            check_panels(self.connection, self.app, events, query, now, self.zone, ignored)


def _anonymous(event: RawEvent) -> RawEvent:
    """Return an event whose user is nobody else, like the events of frozen days."""
    return replace(event, user_id=f"{event.user_id}#{uuid.uuid4()}")


STEPS = [
    *["send"] * 6,
    *["store_old"] * 2,
    *["kill"] * 2,
    *("erase", "prune", "restart", "rebuild", "aggregate", "wait", "change_zone"),
]
"""Names of methods of :class:`History`. Those that are listed more than once happen more often."""

steps = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 10_000)), min_size=3, max_size=14)
query = st.fixed_dictionaries(
    {"days": st.sampled_from(["1", "7", "30", "45", "120"])},
    optional={
        "ci": st.sampled_from(["include", "only"]),
        "os": st.sampled_from(["linux", "macos"]),
        "arch": st.sampled_from(["x86_64", "aarch64"]),
        "version": st.sampled_from(VERSIONS),
        "name": st.sampled_from(["build", "remote add", "cache get", "custom_thing"]),
    },
)


@pytest.fixture
def server(directory: Path, database: Database) -> Iterator[Twistd]:
    settings = {"TK__DATABASE__URL": database.dsn, **ENABLED}
    with Twistd(directory, settings) as server:
        server.wait_until_ready()
        yield server


@pytest.mark.timeout(max(300, EXAMPLES * 60))
def test_random_histories(server: Twistd, database: Database) -> None:
    """After a random history, all panels are exact with random filters."""

    @settings(max_examples=EXAMPLES, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
    @given(steps, st.lists(query, min_size=2, max_size=4))
    def check_history(history: list[tuple[str, int]], queries: list[dict[str, str]]) -> None:
        with closing(BlockingConnections().connect(database.dsn)) as connection:
            events = History(server, database, connection)
            try:
                for step, seed in history:
                    getattr(events, step)(seed)
                events.check(queries)
            except BaseException:
                print(history, queries)
                print(server.log[-6000:])
                raise

    check_history()
    assert "aggregation_crashed" not in server.log
    assert "aggregation failed" not in server.log
