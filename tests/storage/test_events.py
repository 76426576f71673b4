"""What is accepted comes back from the database equal to what was sent."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.python.failure import Failure

from tests.support.database import Database
from tests.support.events import make_event
from tests.support.strategies import event_text, events, json_texts, thorough
from tkserver.storage import events as events_module
from tkserver.storage.blocking import BlockingConnections
from tkserver.storage.events import Outcome, Submission
from tkserver.wire.batch import read_batch

PATHS = {
    "schema_version": "schema_version",
    "service_name": "service.name",
    "service_version": "service.version",
    "service_language": "service.language",
    "service_language_version": "service.language_version",
    "user_id": "user_id",
    "session_id": "session_id",
    "os": "environment.os",
    "os_version": "environment.os_version",
    "arch": "environment.arch",
    "ci": "environment.ci",
    "shell": "environment.shell",
    "event_type": "event.type",
    "event_category": "event.category",
    "sdk_version": "metadata.sdk_version",
    "batch_size": "metadata.batch_size",
    "retry_count": "metadata.retry_count",
}
"""Where in an event the value of a column stands."""

ROW = f"""
SELECT {", ".join(PATHS)},
       timestamp = %s::timestamptz, transmission_timestamp = %s::timestamptz, event_data::text
FROM events WHERE event_id = %s
"""

against_postgresql = settings(thorough, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


Store = Callable[[Sequence[Submission]], list[Outcome]]


@pytest.fixture(scope="module")
def store(shared_database: Database) -> Iterator[Store]:
    """The statement by which events are stored, on a connection that blocks: hypothesis waits for no Deferred."""
    connection = BlockingConnections().connect(shared_database.dsn)
    connection.set_session(isolation_level="REPEATABLE READ")

    with connection.cursor() as cursor:
        cursor.execute(";".join(events_module.PREPARE_STORE))

    def execute(sql: str, parameters: Sequence[object] = ()) -> Deferred[Any]:
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return succeed(cursor.fetchall())

    def store(submissions: Sequence[Submission]) -> list[Outcome]:
        found: list[Any] = []
        ensureDeferred(events_module.store_all(execute, submissions)).addBoth(found.append)
        if isinstance(found[0], Failure):
            found[0].raiseException()
        return list(found[0])

    yield store
    connection.close()


def at(event: dict[str, Any], path: str) -> Any:
    """The value at a path, and ``None`` where there is nothing."""
    value: Any = event
    for key in path.split("."):
        value = value.get(key)
    return value


def exact(text: str) -> Any:
    """A JSON text as a value, with numbers as exact as they were written."""
    return json.loads(text, parse_int=Decimal, parse_float=Decimal)


@given(events(), json_texts(surrogates=False))
@against_postgresql
def test_round_trip(store: Store, shared_database: Database, event: dict[str, Any], data: str) -> None:
    """Each column has the event's value, and the data is the same JSON to the last digit."""
    event = {**event, "event_id": str(uuid.uuid4())}
    batch = read_batch(b'{"events":[%s]}' % event_text(event, data).encode())
    assume(batch.events)
    submission = Submission.of(uuid.uuid4(), uuid.uuid4(), None, batch.events)
    (outcome,) = store([submission])
    assert outcome.accepts_any_of(submission)
    accepted = batch.events[0]
    times = (accepted.timestamp, accepted.metadata.transmission_timestamp)
    utc = [f"{time.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S.%f}+00".rjust(29, "0") for time in times]
    (row,) = shared_database.query(ROW, *utc, event["event_id"])
    expected = {column: at(event, path) for column, path in PATHS.items()}
    assert dict(zip(PATHS, row, strict=False)) == expected
    assert row[-3:-1] == (True, True)
    assert exact(row[-1]) == exact(data)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=12))
@against_postgresql
def test_many_submissions_in_one_commit(store: Store, shared_database: Database, plan: list[tuple[int, int]]) -> None:
    """Whatever ids several applications send at once, each id is stored once, and each submission told its own lot."""
    apps = [uuid.uuid4() for _ in range(3)]
    ids = [str(uuid.uuid4()) for _ in range(6)]
    org = uuid.uuid4()
    submissions = []
    for app, number in plan:
        body = json.dumps({"events": [make_event(event_id=ids[number]), make_event()]}).encode()
        submissions.append(Submission.of(org, apps[app], None, read_batch(body).events))
    outcomes = store(submissions)
    rows = shared_database.query("SELECT event_id::text, app_id::text FROM events WHERE org_id = %s", str(org))
    owners = dict(rows)
    assert len(rows) == len(owners) == len({number for _, number in plan}) + len(plan)
    for (app, number), outcome in zip(plan, outcomes, strict=True):
        conflicts = {0} if owners[ids[number]] != str(apps[app]) else set()
        assert outcome.conflicts == conflicts
        assert not outcome.nonce_reused


@pytest.mark.parametrize("same_app", [True, False])
def test_duplicates_across_submissions(store: Store, same_app: bool) -> None:
    """An id in two submissions of one commit is a duplicate, or a conflict, in one of them."""
    org, app = uuid.uuid4(), uuid.uuid4()
    read = read_batch(json.dumps({"events": [make_event()]}).encode()).events
    pair = [Submission.of(org, app, None, read), Submission.of(org, app if same_app else uuid.uuid4(), None, read)]
    outcomes = store(pair)
    assert sum(len(outcome.duplicates) for outcome in outcomes) == (1 if same_app else 0)
    assert sum(len(outcome.conflicts) for outcome in outcomes) == (0 if same_app else 1)


def test_no_table_is_read_whole(database: Database) -> None:
    """A connection that is made while the tables are empty stays good when they are not."""
    database.query("VACUUM ANALYZE nonces, events")
    connection = BlockingConnections().connect(database.dsn)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(";".join(events_module.PREPARE_STORE))
        request = [str(uuid.uuid4()), str(uuid.uuid4()), "nonce", []]
        cursor.execute("EXPLAIN EXECUTE tkserver_store (%s)", (json.dumps([request]),))
        plan = "\n".join(line for (line,) in cursor.fetchall())
    connection.close()
    assert "Index Scan using nonces_pkey on nonces" in plan
    assert "Index Scan using events_event_id_key on events" in plan
    assert "Seq Scan" not in plan
