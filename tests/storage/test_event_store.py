"""Storage of events: erased users, unstorable events, quotas, and the record of each commit."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.support.events import make_event
from tkserver.storage.erased_users import ErasedUsers, user_hash
from tkserver.storage.errors import Collision, ConnectionLost, DataRefused, Inseparable, Unavailable
from tkserver.storage.event_store import CommitRecord, CommitResult, EventStore
from tkserver.storage.events import Outcome, Submission
from tkserver.storage.pool import READ_COMMITTED, Execute, JsonLiteral
from tkserver.storage.quarantine import InvalidEvent
from tkserver.storage.store_statement import STORE
from tkserver.wire.batch import read_batch, run_steps

ORG, APP = uuid.uuid4(), uuid.uuid4()
KEY = b"key"


def make_submission(*users: str, app: uuid.UUID = APP, has_quota: bool = False) -> Submission:
    """Return a submission with an event of each user."""
    body = json.dumps({"events": [make_event(user_id=user) for user in users]}).encode()
    return Submission.from_events(ORG, app, None, run_steps(read_batch(body)).events, has_quota=has_quota)


def erased(*users: str) -> ErasedUsers:
    """Return a set of users that are erased from all applications."""
    return ErasedUsers(KEY, frozenset(user_hash(KEY, user) for user in users), {})


class FakeErasedUsers:
    """A cache of erased users that returns the sets of a list, one after another.

    A set is up to date as long as it is the last one. An error in the list is raised.
    """

    def __init__(self, *results: ErasedUsers | Exception) -> None:
        self._results = list(results)
        self._calls = 0

    async def current(self) -> tuple[ErasedUsers, int]:
        result = self._results[self._calls]
        self._calls += 1
        if isinstance(result, Exception):
            raise result
        return result, self._calls

    def may_have_changed_since(self, generation: int) -> bool:
        return generation < len(self._results)


class FakeErasureStore:
    """Records which events are deleted.

    :ivar error: deletions fail with this error.
    """

    def __init__(self) -> None:
        self.deleted: list[list[uuid.UUID]] = []
        self.deleted_from_quarantine: list[list[InvalidEvent]] = []
        self.error: Exception | None = None

    async def delete(self, org_id: uuid.UUID, app_id: uuid.UUID, event_ids: list[uuid.UUID]) -> None:
        assert (org_id, app_id) == (ORG, APP)
        if self.error is not None:
            raise self.error
        self.deleted.append(event_ids)

    async def delete_quarantined(self, org_id: uuid.UUID, app_id: uuid.UUID, events: list[InvalidEvent]) -> None:
        assert (org_id, app_id) == (ORG, APP)
        if self.error is not None:
            raise self.error
        self.deleted_from_quarantine.append(events)


class FakePool:
    """A pool without a database. Each store statement takes one second.

    :ivar errors: the result of each store statement: an exception, or ``None`` for success. The others succeed.
    :ivar commit_error: the exception that each ``COMMIT`` raises.
    :ivar statements: the statements that were executed.
    :ivar isolations: the isolation level of each transaction; ``None`` for a single statement.
    :ivar stored: the requests that were stored.
    :ivar dropped: the number of events that are deleted to make room whenever events are quarantined.
    """

    def __init__(self, clock: Clock, errors: Iterable[Exception | None]) -> None:
        self._clock = clock
        self.errors = list(errors)
        self.commit_error: Exception | None = None
        self.statements: list[str] = []
        self.isolations: list[str | None] = []
        self.stored: list[Any] = []
        self.dropped = 0

    async def _execute(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        self.statements.append(sql)
        if "tkserver_trim_quarantine" in sql:
            return [(self.dropped,)]
        if sql != STORE:
            return []  # of the query for a quota: the application has none
        self._clock.advance(1)
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        (requests,) = parameters
        assert isinstance(requests, JsonLiteral)
        requests = requests.text.decode()
        assert isinstance(requests, str)
        self.stored += json.loads(requests)
        return []

    async def run(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        self.isolations.append(None)
        return await self._execute(sql, parameters)

    async def transaction(self, work: Callable[[Execute], Awaitable[Any]], isolation: str = "REPEATABLE READ") -> Any:
        self.isolations.append(isolation)
        result = await work(self._execute)
        if self.commit_error is not None:
            raise self.commit_error
        return result

    @property
    def stored_events(self) -> int:
        return sum(len(origin[-1]) for *_, origins in self.stored for origin in origins)


class Bench:
    """An event store on fakes, and the records of its commits."""

    def __init__(self, *erased_users: ErasedUsers | Exception, errors: Iterable[Exception | None] = ()) -> None:
        self.clock, self.records = Clock(), list[CommitRecord]()
        self.pool, self.erasures = FakePool(self.clock, errors), FakeErasureStore()
        self.store = EventStore(
            self.pool,  # type: ignore[arg-type]
            self.erasures,  # type: ignore[arg-type]
            FakeErasedUsers(*(erased_users or (erased(),))),  # type: ignore[arg-type]
            self.clock.seconds,
            self.records.append,
        )

    def submit(self, *submissions: Submission, skip_unstorable: bool = False) -> list[Outcome]:
        """Store submissions, and return their outcomes or raise the error."""
        results: list[Any] = []
        ensureDeferred(self.store.store(submissions, skip_unstorable=skip_unstorable)).addBoth(results.append)
        (result,) = results
        if isinstance(result, Failure):
            result.raiseException()
        outcomes: list[Outcome] = result
        return outcomes

    @property
    def commits(self) -> list[tuple[CommitResult, int]]:
        return [(record.result, record.events) for record in self.records]


def ids_of(submission: Submission, *indexes: int) -> list[uuid.UUID]:
    return [submission.rows[index].event_id for index in indexes]


def test_events_of_erased_users_are_not_stored() -> None:
    """Events of erased users are not stored, and are deleted because they may have been stored before."""
    bench = Bench(erased("client_b"))
    first, second = make_submission("client_a", "client_b"), make_submission("client_c")
    outcomes = bench.submit(first, second)
    assert outcomes == [Outcome(erased=frozenset({1})), Outcome()]
    assert bench.pool.stored_events == 2
    assert bench.erasures.deleted == [ids_of(first, 1)]
    assert bench.commits == [(CommitResult.COMMITTED, 2)]


def test_submissions_of_erased_users_need_no_commit() -> None:
    """If all events are of erased users, nothing is committed; each submission still gets its own outcome."""
    bench = Bench(erased("client_b"))
    outcomes = bench.submit(make_submission("client_b"), make_submission("client_b", "client_b"))
    assert outcomes == [Outcome(erased=frozenset({0})), Outcome(erased=frozenset({0, 1}))]
    assert bench.pool.statements == []
    assert bench.commits == []


def test_outcomes_are_in_the_order_of_submissions() -> None:
    """Submissions that are not committed do not shift the outcomes of others."""
    bench = Bench(erased("client_b"))
    submissions = [make_submission(*users) for users in (["client_b"], ["client_a", "client_a"], ["client_b"])]
    assert [outcome.erased for outcome in bench.submit(*submissions)] == [{0}, set(), {0}]


def test_user_erased_during_the_commit() -> None:
    """Events of a user who is erased during the commit are deleted after it."""
    bench = Bench(erased(), erased("client_b"))
    first, second = make_submission("client_a", "client_b"), make_submission("client_c")
    assert bench.submit(first, second) == [Outcome(erased=frozenset({1})), Outcome()]
    assert bench.pool.stored_events == 3
    assert bench.erasures.deleted == [ids_of(first, 1)]


def test_erasure_undone_during_the_commit() -> None:
    """Events that were not stored are reported as erased, even if the erasure was undone during the commit."""
    bench = Bench(erased("client_b"), erased())
    submission = make_submission("client_a", "client_b")
    assert bench.submit(submission) == [Outcome(erased=frozenset({1}))]
    assert bench.erasures.deleted == [ids_of(submission, 1)]


def test_error_of_the_second_check_becomes_part_of_the_outcomes() -> None:
    """If it is unknown after the commit who is erased, all outcomes have a problem, and the commit is recorded."""
    error = Unavailable("away")
    bench = Bench(erased(), error)
    outcomes = bench.submit(make_submission("client_a"), make_submission("client_b"))
    assert [outcome.problem for outcome in outcomes] == [error, error]
    assert bench.commits == [(CommitResult.COMMITTED, 2)]


def test_error_of_a_deletion_becomes_part_of_the_outcome() -> None:
    """If events of an erased user cannot be deleted, only the outcome of their submission has a problem."""
    bench = Bench(erased("client_b"))
    bench.erasures.error = Unavailable("away")
    outcomes = bench.submit(make_submission("client_b"), make_submission("client_a"))
    assert [outcome.problem for outcome in outcomes] == [bench.erasures.error, None]


def test_nothing_is_stored_if_erased_users_are_unknown() -> None:
    """If it is unknown before the commit who is erased, nothing is stored."""
    bench = Bench(Unavailable("away"))
    with pytest.raises(Unavailable):
        bench.submit(make_submission("client_a"))
    assert bench.pool.statements == []
    assert bench.commits == []


@pytest.mark.parametrize(
    ("submissions", "error", "result"),
    [
        (1, DataRefused("check violation"), CommitResult.SPLIT),
        (2, DataRefused("check violation"), CommitResult.SPLIT),
        (1, Collision("deadlock"), CommitResult.FAILED),
        (2, Collision("deadlock"), CommitResult.SPLIT),
        (2, Inseparable("separately"), CommitResult.SPLIT),
        (2, Unavailable("away"), CommitResult.FAILED),
        (2, ConnectionLost("away"), CommitResult.UNKNOWN),
        (1, ValueError("a bug"), CommitResult.FAILED),
    ],
)
def test_result_of_a_failed_commit(submissions: int, error: Exception, result: CommitResult) -> None:
    """A commit that fails is recorded with its result, and raises its error."""
    bench = Bench(errors=[error])
    with pytest.raises(type(error)):
        bench.submit(*(make_submission("client_a", "client_b") for _ in range(submissions)))
    assert bench.records == [CommitRecord(result, 2 * submissions, 1.0)]


def test_unstorable_events_are_skipped() -> None:
    """If the database rejects a submission, its halves are stored, down to the events that are not accepted."""
    rejected = DataRefused("check violation")
    # All events; events 0 and 1, which are accepted; events 2 and 3; event 2, which is accepted; event 3.
    bench = Bench(errors=[rejected, None, rejected, None, rejected])
    (outcome,) = bench.submit(make_submission(*["client_a"] * 4), skip_unstorable=True)
    assert outcome == Outcome(unstorable=frozenset({3}))
    assert bench.pool.errors == []
    assert bench.pool.stored_events == 3
    assert bench.commits == [(CommitResult.COMMITTED, 4)]


@pytest.mark.parametrize("error", [Unavailable("away"), DataRefused("a constraint that is checked at COMMIT")])
def test_error_while_unstorable_events_are_skipped(error: Exception) -> None:
    """If a commit that skips unstorable events fails, it is not retried in parts, and is recorded as failed."""
    bench = Bench()
    bench.pool.commit_error = error
    with pytest.raises(type(error)):
        bench.submit(make_submission("client_a"), skip_unstorable=True)
    assert bench.commits == [(CommitResult.FAILED, 1)]


@pytest.mark.parametrize(
    ("has_quota", "skip_unstorable", "isolation"),
    [
        (False, False, None),
        (False, True, "REPEATABLE READ"),
        (True, False, READ_COMMITTED),
        (True, True, READ_COMMITTED),
    ],
)
def test_kind_of_transaction(has_quota: bool, skip_unstorable: bool, isolation: str | None) -> None:
    """Only quotas and the search for unstorable events need more than one statement; quotas need READ COMMITTED."""
    bench = Bench()
    submission = make_submission("client_a", has_quota=has_quota)
    assert bench.submit(submission, skip_unstorable=skip_unstorable) == [Outcome()]
    assert bench.pool.isolations == [isolation]
    assert (len(bench.pool.statements) == 1) == (isolation is None)


# --- invalid events


def make_mixed_submission(*users: str) -> Submission:
    """Return a submission with a valid event, and an invalid one of each user."""
    invalid = {
        index: InvalidEvent(None, "invalid_schema", "$: no", user, "{}") for index, user in enumerate(users, start=1)
    }
    return replace(make_submission("client_valid"), invalid=invalid)


def test_invalid_events_are_quarantined_in_the_same_transaction() -> None:
    """Valid and invalid events are committed together, and dropped events are counted only after the commit."""
    bench = Bench()
    bench.pool.dropped = 3
    bench.pool.commit_error = Unavailable("away")
    with pytest.raises(Unavailable):
        bench.submit(make_mixed_submission("client_a"))
    assert bench.store.dropped == 0
    assert bench.commits == [(CommitResult.FAILED, 2)]
    bench = Bench()
    bench.pool.dropped = 3
    assert bench.submit(make_mixed_submission("client_a"), make_mixed_submission()) == [Outcome(), Outcome()]
    assert bench.pool.isolations == [READ_COMMITTED]
    assert bench.store.dropped == 3
    assert bench.commits == [(CommitResult.COMMITTED, 3)]


def test_invalid_events_of_erased_users_are_not_quarantined() -> None:
    """An invalid event of an erased user is not quarantined; it is deleted in case an earlier request has done so."""
    bench = Bench(erased("client_a"))
    submission = make_mixed_submission("client_a", "client_b")
    assert bench.submit(submission) == [Outcome(erased=frozenset({1}))]
    assert bench.commits == [(CommitResult.COMMITTED, 2)]
    assert bench.erasures.deleted_from_quarantine == [[submission.invalid[1]]]
    assert bench.erasures.deleted == []
    bench = Bench(erased("client_a"))
    assert bench.submit(replace(submission, rows={}).without([2])) == [Outcome(erased=frozenset({1}))]
    assert bench.commits == []


def test_user_is_erased_while_invalid_events_are_quarantined() -> None:
    """Events that were quarantined after the erasure are deleted. If that fails, the outcome has a problem."""
    submission = make_mixed_submission("client_a")
    bench = Bench(erased(), erased("client_a"))
    assert bench.submit(submission) == [Outcome(erased=frozenset({1}))]
    assert bench.erasures.deleted_from_quarantine == [[submission.invalid[1]]]
    bench = Bench(erased(), erased("client_a"))
    bench.erasures.error = error = Unavailable("away")
    assert bench.submit(submission) == [Outcome(problem=error)]
