"""The statement that stores events, and the events that it stores."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
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
from tests.support.strategies import batch_body, event_text, events, json_texts, thorough
from tkserver.storage.blocking import BlockingConnections, rows
from tkserver.storage.event_store import insert_all
from tkserver.storage.events import Outcome, Submission
from tkserver.storage.store_statement import PREPARE_STORE
from tkserver.wire.batch import read_batch, run_steps

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
"""The path of the value in an event, by column."""

ROW = f"""
SELECT {", ".join(PATHS)},
       timestamp = %s::timestamptz, transmission_timestamp = %s::timestamptz, event_data::text
FROM events WHERE event_id = %s
"""

against_postgresql = settings(thorough, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


Store = Callable[[Sequence[Submission]], list[Outcome]]


@pytest.fixture(scope="module")
def store(shared_database: Database) -> Iterator[Store]:
    """A function that stores submissions on a blocking connection, because Hypothesis does not run the reactor."""
    connection = BlockingConnections().connect(shared_database.dsn)
    connection.set_session(isolation_level="REPEATABLE READ")
    rows(connection, ";".join(PREPARE_STORE))

    def execute(sql: str, parameters: Sequence[object] = ()) -> Deferred[Any]:
        return succeed(rows(connection, sql, *parameters))

    def store(submissions: Sequence[Submission]) -> list[Outcome]:
        results: list[Any] = []
        ensureDeferred(insert_all(execute, submissions)).addBoth(results.append)
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return list(results[0])

    yield store
    connection.close()


def value_at(event: dict[str, Any], path: str) -> Any:
    """Return the value at a path of an event; ``None`` if there is none."""
    part: Any = event
    for key in path.split("."):
        part = part.get(key)
    return part


def parse_exactly(text: str) -> Any:
    """Parse JSON with numbers of unlimited precision."""
    return json.loads(text, parse_int=Decimal, parse_float=Decimal)


@given(events(), json_texts(surrogates=False))
@against_postgresql
def test_stored_event_equals_sent_event(
    store: Store, shared_database: Database, event: dict[str, Any], data: str
) -> None:
    """Each column contains the value of the event, and the data is the same JSON down to the last digit."""
    event = {**event, "event_id": str(uuid.uuid4())}
    batch = run_steps(read_batch(batch_body([event_text(event, data)])))
    assume(batch.events)
    submission = Submission.from_events(uuid.uuid4(), uuid.uuid4(), None, batch.events)
    (outcome,) = store([submission])
    assert outcome.stores_any_of(submission)
    accepted = batch.events[0]
    times = (accepted.timestamp, accepted.metadata.transmission_timestamp)
    utc = [f"{time.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S.%f}+00".rjust(29, "0") for time in times]
    (row,) = shared_database.query(ROW, *utc, event["event_id"])
    expected = {column: value_at(event, path) for column, path in PATHS.items()}
    assert dict(zip(PATHS, row, strict=False)) == expected
    assert row[-3:-1] == (True, True)
    assert parse_exactly(row[-1]) == parse_exactly(data)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=12))
@against_postgresql
def test_each_id_is_stored_once(store: Store, shared_database: Database, plan: list[tuple[int, int]]) -> None:
    """If submissions of several applications contain the same ids, each id is stored once; the others conflict."""
    apps = [uuid.uuid4() for _ in range(3)]
    ids = [str(uuid.uuid4()) for _ in range(6)]
    org = uuid.uuid4()
    submissions = []
    for app, number in plan:
        body = json.dumps({"events": [make_event(event_id=ids[number]), make_event()]}).encode()
        submissions.append(Submission.from_events(org, apps[app], None, run_steps(read_batch(body)).events))
    outcomes = store(submissions)
    stored = shared_database.query("SELECT event_id::text, app_id::text FROM events WHERE org_id = %s", str(org))
    owners = dict(stored)
    assert len(stored) == len(owners) == len({number for _, number in plan}) + len(plan)
    for (app, number), outcome in zip(plan, outcomes, strict=True):
        conflicts = {0} if owners[ids[number]] != str(apps[app]) else set()
        assert outcome.conflicts == conflicts
        assert not outcome.nonce_reused


@pytest.mark.parametrize("same_app", [True, False])
def test_same_id_in_two_submissions_of_a_commit(store: Store, same_app: bool) -> None:
    """If two submissions of a commit contain the same id, it is a duplicate or a conflict in one of them."""
    org, app = uuid.uuid4(), uuid.uuid4()
    events = run_steps(read_batch(json.dumps({"events": [make_event()]}).encode())).events
    apps = (app, app if same_app else uuid.uuid4())
    outcomes = store([Submission.from_events(org, app_id, None, events) for app_id in apps])
    assert sum(len(outcome.duplicates) for outcome in outcomes) == (1 if same_app else 0)
    assert sum(len(outcome.conflicts) for outcome in outcomes) == (0 if same_app else 1)


def test_plan_uses_indexes_even_if_tables_are_empty(database: Database) -> None:
    """The plan of a connection that was opened while the tables were empty is also efficient when they have grown."""
    database.query("VACUUM ANALYZE nonces, events")
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        rows(connection, ";".join(PREPARE_STORE))
        request = [str(uuid.uuid4()), str(uuid.uuid4()), "nonce", 0, []]
        lines = rows(connection, "EXPLAIN EXECUTE tkserver_store (%s)", json.dumps([request]))
        plan = "\n".join(line for (line,) in lines)
    assert "Index Only Scan using nonces_pkey on nonces" in plan
    assert "Index Scan using events_event_id_key on events" in plan
    assert "Seq Scan" not in plan
