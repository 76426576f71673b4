"""Group commit: which submissions are committed together, and which outcome each of them gets."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence

import pytest
from msgspec.structs import replace
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from tests.support.events import make_event
from tkserver.ingest import committer as committer_module
from tkserver.ingest.active_applications import ACTIVE_TIME, ActiveApplications
from tkserver.ingest.committer import LARGE_WRITERS, PAUSE_FACTOR, Committer, QueueLimits
from tkserver.ingest.ledger import GIVEN_UP, QUARANTINED, REFUSED, Ledger
from tkserver.storage.errors import Collision, DataRefused, Inseparable, Unavailable
from tkserver.storage.events import Outcome, Source, Submission
from tkserver.storage.quarantine import invalid_events
from tkserver.wire.api_errors import Overloaded, StorageUnavailable
from tkserver.wire.batch import read_batch, run_steps

DUPLICATE = Outcome(duplicates=frozenset({0}))

ORG, APP = uuid.uuid4(), uuid.uuid4()

TIMED_OUT = "not committed within 10 s"


def make_submission(
    events: int = 1, nonce: str | None = None, *, app: uuid.UUID = APP, has_quota: bool = False
) -> Submission:
    body = json.dumps({"events": [make_event() for _ in range(events)]}).encode()
    return Submission.from_events(ORG, app, nonce, run_steps(read_batch(body)).events, has_quota=has_quota)


class Commits:
    """The commits of a kind of applications, which end when the test calls :meth:`end`.

    :ivar pending: the commits in progress, oldest first.
    :ivar sizes: the number of submissions in each commit.
    :ivar mixed: the commits that have ended and contained invalid events.
    """

    def __init__(self) -> None:
        self.pending: list[tuple[Sequence[Submission], Deferred[list[Outcome]]]] = []
        self.sizes: list[int] = []
        self.mixed: list[Sequence[Submission]] = []

    def begin(self, submissions: Sequence[Submission]) -> Deferred[list[Outcome]]:
        done: Deferred[list[Outcome]] = Deferred()
        self.pending.append((submissions, done))
        return done

    def end(self, index: int = 0) -> None:
        """Let a commit succeed, by default the oldest. All events are duplicates, so that outcomes differ by size."""
        submissions, done = self.pending.pop(index)
        if any(submission.invalid for submission in submissions):
            self.mixed.append(submissions)
        done.callback([Outcome(duplicates=frozenset(submission.rows)) for submission in submissions])

    def end_all(self) -> None:
        """Let all commits succeed, including those that begin in the meantime."""
        while self.pending:
            self.end()

    def fail(self, error: Exception) -> None:
        """Let the oldest commit fail."""
        self.pending.pop(0)[1].errback(error)


class FakeStore:
    """A store whose commits the test ends.

    :ivar commits: of applications without a quota.
    :ivar quota_commits: of applications with a quota.
    :ivar unstorable: submissions that the database does not accept.
    :ivar refuses_parts: true if they are not even accepted when unstorable events are skipped.
    """

    def __init__(self) -> None:
        self.commits, self.quota_commits = Commits(), Commits()
        self.unstorable: list[Submission] = []
        self.refuses_parts = False

    def store(self, submissions: Sequence[Submission], *, skip_unstorable: bool = False) -> Deferred[list[Outcome]]:
        first = submissions[0]
        if first.has_quota:
            assert {submission.application for submission in submissions} == {first.application}
        assert {submission.has_quota for submission in submissions} == {first.has_quota}
        if skip_unstorable:
            assert list(submissions) == [first]
            if self.refuses_parts:
                return fail(DataRefused("check violation"))
            return succeed([Outcome(unstorable=frozenset(first.rows))])
        commits = self.quota_commits if first.has_quota else self.commits
        commits.sizes.append(len(submissions))
        if any(submission in self.unstorable for submission in submissions):
            return fail(DataRefused("check violation"))
        return commits.begin(submissions)


class Bench:
    """A committer with a fake store and a fake clock."""

    def __init__(self, limits: QueueLimits = QueueLimits()) -> None:  # noqa: B008 -- frozen
        self.store, self.clock, self.ledger = FakeStore(), Clock(), Ledger()
        self.active = ActiveApplications(self.clock.seconds)
        self.commits, self.quota_commits = self.store.commits, self.store.quota_commits
        self.committer = Committer(self.store, self.clock, limits, self.ledger, self.active)

    def note_request(self, app: uuid.UUID) -> None:
        self.active.note_request((ORG.int, app.int))

    def submit(self, submission: Submission) -> list[object]:
        """Submit, and return a list to which the outcome or error is appended."""
        results: list[object] = []
        self.committer.submit(submission).addCallbacks(results.append, lambda failure: results.append(failure.value))
        return results

    def advance(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)


@pytest.fixture(autouse=True)
def two_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the tests independent of the number of writers."""
    monkeypatch.setattr(committer_module, "WRITERS", 2)


def test_single_submission_is_committed_immediately() -> None:
    """A submission does not wait for a timer, and gets its own outcome."""
    bench = Bench()
    results = bench.submit(make_submission(3))
    assert bench.commits.sizes == [1]
    bench.commits.end()
    assert results == [Outcome(duplicates=frozenset(range(3)))]


def test_submissions_that_wait_are_committed_together() -> None:
    """While two commits are in progress, submissions wait; the next commit contains all of them, in their order."""
    bench = Bench()
    results = [bench.submit(make_submission(events)) for events in range(1, 8)]
    assert bench.commits.sizes == [1, 1]
    bench.commits.end()
    assert bench.commits.sizes == [1, 1, 5]
    bench.commits.end()
    bench.commits.end()
    assert results == [[Outcome(duplicates=frozenset(range(events)))] for events in range(1, 8)]


def test_size_of_commits_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit has a maximum number of events and bytes; a larger submission is committed alone."""
    monkeypatch.setattr(committer_module, "MAX_COMMIT_EVENTS", 10)
    bench = Bench()
    for events in (1, 1, 6, 4, 5, 30, 1):
        bench.submit(make_submission(events))
    bench.commits.end_all()
    assert bench.commits.sizes == [1, 1, 2, 1, 1, 1]
    monkeypatch.setattr(committer_module, "MAX_COMMIT_BYTES", 2 * make_submission().bytes)
    bench = Bench()
    for _ in range(7):
        bench.submit(make_submission())
    bench.commits.end_all()
    assert bench.commits.sizes == [1, 1, 2, 2, 1]


def test_commit_contains_each_nonce_once() -> None:
    """A second request with the same nonce is committed later, so that it is recognized."""
    bench = Bench()
    for nonce in (None, None, "a", "b", "a", "c"):
        bench.submit(make_submission(nonce=nonce))
    bench.commits.end_all()
    assert bench.commits.sizes == [1, 1, 2, 2]


def test_unstorable_submission_does_not_affect_others() -> None:
    """A rejected commit is split until the unstorable submission is alone; all others are stored."""
    bench = Bench()
    bench.submit(make_submission())
    bench.submit(make_submission())
    waiting = [make_submission() for _ in range(8)]
    bench.store.unstorable = [waiting[5]]
    results = [bench.submit(submission) for submission in waiting]
    with capturedLogs() as events:
        bench.commits.end_all()
    assert [event["problem"] for event in events if event.get("event") == "data_refused"] == ["check violation"]
    expected = [[DUPLICATE]] * 8
    expected[5] = [Outcome(unstorable=frozenset({0}))]
    assert results == expected


def test_submission_fails_if_not_even_parts_are_storable() -> None:
    """A submission that is rejected although unstorable events are skipped fails, and is not tried again."""
    bench = Bench()
    submission = make_submission(2)
    bench.store.unstorable, bench.store.refuses_parts = [submission], True
    (error,) = bench.submit(submission)
    assert isinstance(error, DataRefused)
    assert bench.commits.sizes == [1]
    assert bench.ledger.settled[REFUSED, StorageUnavailable.code] == 2


def test_error_fails_all_submissions_of_a_commit() -> None:
    """If a commit fails, each of its submissions fails, and the next commit is attempted."""
    bench = Bench()
    results = [bench.submit(make_submission()) for _ in range(4)]
    error = Unavailable("away")
    bench.commits.fail(error)
    bench.commits.end()
    bench.commits.end()
    assert results == [[error], *[[DUPLICATE]] * 3]


def test_submissions_time_out() -> None:
    """A submission that has waited too long fails once; it is not committed unless its commit has begun."""
    bench = Bench(QueueLimits(timeout=10))
    results = [bench.submit(make_submission()) for _ in range(3)]
    bench.clock.advance(10)
    assert all(isinstance(result[0], Unavailable) for result in results)
    bench.commits.end()
    bench.commits.end()
    assert bench.commits.sizes == [1, 1]
    assert [len(result) for result in results] == [1, 1, 1]


class TimedBench(Bench):
    """A committer with a timeout of ten seconds.

    :ivar ends: when each submission ended, and its outcome or the text of its error.
    """

    def __init__(self) -> None:
        super().__init__(QueueLimits(timeout=10))
        self.ends: list[tuple[float, object]] = []

    def begin(self) -> None:
        """Submit one event."""
        self.committer.submit(make_submission()).addBoth(self._end)

    def _end(self, result: Outcome | Failure) -> None:
        if isinstance(result, Failure):
            result.trap(Unavailable)
        self.ends.append((self.clock.seconds(), str(result.value) if isinstance(result, Failure) else result))


def test_each_submission_has_its_own_timeout() -> None:
    """Each submission fails ten seconds after it was submitted, not together with the first."""
    bench = TimedBench()
    bench.begin()
    bench.advance(4)
    bench.begin()
    bench.begin()
    bench.advance(30)
    assert bench.ends == [(10, TIMED_OUT), (14, TIMED_OUT), (14, TIMED_OUT)]


def test_submission_that_was_committed_does_not_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A submission that was committed in time does not fail, and the timeouts of others still apply."""
    monkeypatch.setattr(committer_module, "WRITERS", 3)
    bench = TimedBench()
    for _ in range(3):
        bench.begin()
        bench.advance(2)
    bench.commits.end(1)
    bench.advance(30)
    assert bench.ends == [(6, DUPLICATE), (10, TIMED_OUT), (14, TIMED_OUT)]


def test_all_timeouts_share_one_timer() -> None:
    """There is one timer for any number of submissions, and none if no submission waits."""
    bench = TimedBench()
    for _ in range(100):
        bench.begin()
    assert len(bench.clock.getDelayedCalls()) == 1
    bench.commits.end_all()
    assert len(bench.ends) == 100
    bench.advance(10)
    assert bench.clock.getDelayedCalls() == []
    bench.begin()
    bench.advance(10)
    assert bench.ends[100:] == [(20, TIMED_OUT)]


@pytest.mark.parametrize("limits", [QueueLimits(events=10), QueueLimits(bytes=10 * make_submission().bytes)])
def test_full_queue_accepts_submissions_when_half_empty(limits: QueueLimits) -> None:
    """A full queue rejects submissions until it has been emptied to one half."""
    bench = Bench(limits)
    apps = [uuid.uuid4(), uuid.uuid4()]
    for number in range(10):
        bench.submit(make_submission(app=apps[number % 2]))
    with pytest.raises(Overloaded):
        bench.submit(make_submission())
    bench.commits.end()  # 9 left: one is being committed, and a commit of 8 begins now
    with pytest.raises(Overloaded):
        bench.committer.check_load()
    bench.commits.end()
    bench.commits.end()
    bench.committer.check_load()
    bench.submit(make_submission())


def test_application_uses_only_its_share_of_the_queue() -> None:
    """An application that fills its share of the queue is rejected; other applications are not affected."""
    bench = Bench(QueueLimits(events=40))
    for _ in range(30):
        bench.submit(make_submission())
    with pytest.raises(Overloaded):
        bench.submit(make_submission())
    other = uuid.uuid4()
    for _ in range(10):
        bench.committer.check_load()
        bench.submit(make_submission(app=other))
    bench.commits.end()
    bench.submit(make_submission())


def test_applications_take_turns() -> None:
    """A commit contains submissions of all applications that wait, also if one of them submits much more."""
    bench = Bench()
    busy, quiet = uuid.uuid4(), uuid.uuid4()
    for _ in range(committer_module.WRITERS):
        bench.submit(make_submission())  # occupies a writer
    for _ in range(20):
        bench.submit(make_submission(300, app=busy))
    bench.submit(make_submission(app=quiet))
    bench.commits.end()
    submissions, _ = bench.commits.pending[-1]
    assert [submission.app_id for submission in submissions][:2] == [busy, quiet]
    assert len(submissions) < 20


def test_small_submissions_do_not_wait_for_large_ones() -> None:
    """While all writers of large submissions are at work, a small submission is committed immediately."""
    bench = Bench()
    large = make_submission(500)
    assert large.bytes > committer_module.LARGE_SUBMISSION
    for _ in range(5):
        bench.submit(make_submission(500))
    assert bench.commits.sizes == [1] * LARGE_WRITERS
    bench.submit(make_submission(app=uuid.uuid4()))
    assert bench.commits.sizes == [1] * LARGE_WRITERS + [1]


def test_application_pauses_after_a_large_commit() -> None:
    """An application makes one large commit at a time, with pauses, while another one is active."""
    bench = Bench()
    other = uuid.uuid4()
    bench.note_request(APP)
    bench.note_request(other)
    results = [bench.submit(make_submission(600)) for _ in range(6)]
    assert bench.commits.sizes == [1]
    bench.clock.advance(0.1)
    bench.commits.end()
    assert bench.commits.pending == []
    bench.submit(make_submission(600, app=other))  # no other application waits
    bench.commits.end()
    bench.clock.advance(0.1 * PAUSE_FACTOR - 0.01)
    assert bench.commits.pending == []
    bench.clock.advance(0.02)
    assert len(bench.commits.pending) == 1
    assert [len(result) for result in results] == [1, 0, 0, 0, 0, 0]


def test_application_that_is_alone_does_not_pause() -> None:
    """An application that is alone makes several large commits at once, and no pauses."""
    bench = Bench()
    bench.note_request(uuid.uuid4())
    bench.note_request(APP)
    bench.submit(make_submission(600))
    bench.submit(make_submission(600))
    assert bench.commits.sizes == [1]
    bench.clock.advance(2 * ACTIVE_TIME)
    results = [bench.submit(make_submission(600)) for _ in range(5)]
    assert len(bench.commits.pending) == LARGE_WRITERS
    bench.clock.advance(0.1)
    bench.commits.end_all()
    assert all(results)


def test_no_pause_after_small_commits() -> None:
    """The next small commit begins immediately, also if it is of an application with a quota."""
    bench = Bench()
    for app in (uuid.uuid4(), APP):
        bench.note_request(app)
    for _ in range(3):
        bench.submit(make_submission(has_quota=True))
    bench.clock.advance(0.1)
    bench.quota_commits.end()
    assert len(bench.quota_commits.pending) == 1


def test_cancelled_submission_is_not_committed() -> None:
    """A submission that is cancelled while it waits is not committed."""
    bench = Bench()
    for _ in range(2):
        bench.submit(make_submission())
    bench.committer.submit(make_submission()).addErrback(lambda _: None).cancel()
    bench.commits.end()
    bench.commits.end()
    assert bench.commits.sizes == [1, 1]


def test_applications_with_quota_have_their_own_lanes() -> None:
    """An application with a quota has one commit in progress at a time; no other application waits for it."""
    bench = Bench()
    apps = [uuid.uuid4() for _ in range(3)]
    results = [bench.submit(make_submission(app=app, has_quota=True)) for _ in range(3) for app in apps]
    assert [submissions[0].app_id for submissions, _ in bench.quota_commits.pending] == apps[:2]
    without_quota = bench.submit(make_submission())
    bench.commits.end()
    assert without_quota == [DUPLICATE]
    committed = []
    while bench.quota_commits.pending:
        submissions = bench.quota_commits.pending[0][0]
        committed.append((apps.index(submissions[0].app_id), len(submissions)))
        bench.quota_commits.end()
        in_progress = [submissions[0].app_id for submissions, _ in bench.quota_commits.pending]
        assert len(in_progress) == len(set(in_progress)) <= 2
    assert committed == [(0, 1), (1, 1), (2, 3), (0, 2), (1, 2)]
    assert results == [[DUPLICATE]] * 9


def test_submissions_from_callback_of_last_outcome_are_committed_in_order() -> None:
    """Submissions made while the last outcome of a lane is delivered are committed by the same lane."""
    bench = Bench()
    first = bench.committer.submit(make_submission(has_quota=True))
    first.addCallback(lambda _: [bench.submit(make_submission(has_quota=True)) for _ in range(2)])
    bench.quota_commits.end()
    assert bench.quota_commits.sizes == [1, 2]
    bench.quota_commits.end()
    bench.submit(make_submission(has_quota=True))
    assert bench.quota_commits.sizes == [1, 2, 1]


def test_inseparable_submissions_are_committed_in_halves() -> None:
    """If the quota cannot be checked for all submissions at once, each half is committed separately."""
    bench = Bench()
    results = [bench.submit(make_submission(has_quota=True)) for _ in range(5)]
    bench.quota_commits.end()
    bench.quota_commits.fail(Inseparable("the submissions must be stored separately"))
    bench.quota_commits.end_all()
    assert bench.quota_commits.sizes == [1, 4, 2, 2]
    assert results == [[DUPLICATE]] * 5


def test_collision_affects_only_the_submission_that_collides() -> None:
    """If a commit collides with other transactions, its halves are committed; a single submission fails."""
    bench = Bench()
    bench.submit(make_submission())
    bench.submit(make_submission())
    results = [bench.submit(make_submission()) for _ in range(3)]
    bench.commits.end()
    bench.commits.end()
    collision = Collision("serialization failure (40001)")
    bench.commits.fail(collision)
    bench.commits.fail(collision)
    bench.commits.end_all()
    assert bench.commits.sizes == [1, 1, 3, 1, 2]
    assert results == [[collision], [DUPLICATE], [DUPLICATE]]


def test_lane_uses_only_its_share_of_the_queue() -> None:
    """A blocked lane rejects submissions when its share is full; other applications are not affected."""
    bench = Bench(QueueLimits(events=40))
    for _ in range(10):
        bench.submit(make_submission(has_quota=True))
    with pytest.raises(Overloaded):
        bench.submit(make_submission(has_quota=True))
    for other in (make_submission(app=uuid.uuid4()), make_submission(app=uuid.uuid4(), has_quota=True)):
        bench.submit(other)
    bench.quota_commits.end()
    bench.submit(make_submission(has_quota=True))


def _time_to_drain(applications: int) -> float:
    """Return the CPU time for taking a submission of each of many applications out of a queue."""
    queue = committer_module._FairQueue()
    submission = make_submission()
    for number in range(applications):
        queue.append(committer_module._Pending(replace(submission, app_id=uuid.UUID(int=number)), 1, 1))
    started = time.thread_time()
    while queue:
        queue.pop()
    return time.thread_time() - started


def test_time_for_next_submission_does_not_depend_on_number_of_applications() -> None:
    """Taking a submission out of the queue takes the same time for any number of waiting applications."""
    few, many = (min(_time_to_drain(number) for _ in range(3)) for number in (4_000, 40_000))
    assert many < 40 * few


# --- invalid events


def make_mixed_submission(valid: int = 1, invalid: int = 1, *, app: uuid.UUID = APP) -> Submission:
    """Return a submission with valid and invalid events."""
    body = json.dumps({"events": [*(make_event() for _ in range(valid)), *({"n": n} for n in range(invalid))]}).encode()
    batch = run_steps(read_batch(body))
    events = run_steps(invalid_events(batch.errors, batch.texts))
    submission = Submission.from_events(ORG, app, None, batch.events)
    return replace(submission, invalid=events, source=Source(texts=batch.texts))


def test_invalid_events_have_lanes() -> None:
    """Submissions with invalid events are committed one after another for each application, and delay no others."""
    bench = Bench()
    first, second = uuid.uuid4(), uuid.uuid4()
    for app in (first, first, first, second, second):
        bench.submit(make_mixed_submission(app=app))
    assert bench.commits.sizes == [1, 1]
    for _ in range(3):
        bench.submit(make_submission(app=first))
    assert bench.commits.sizes == [1, 1, 1, 1]
    bench.commits.end_all()
    assert bench.commits.sizes == [1, 1, 1, 1, 2, 1, 1]
    assert all(len({item.app_id for item in commit}) == 1 for commit in bench.commits.mixed)
    assert bench.ledger.settled[QUARANTINED, "invalid_schema"] == 5


def test_submission_without_valid_events() -> None:
    """A submission that has only invalid events counts towards the load of the queue until it is committed."""
    bench = Bench(QueueLimits(events=4))
    results = bench.submit(make_mixed_submission(0, 2))
    assert (bench.committer.load.events, bench.committer.load.bytes > 0) == (2, True)
    bench.commits.end()
    assert (bench.committer.load.events, bench.committer.load.bytes) == (0, 0)
    assert results == [Outcome()]


def test_refused_events_are_quarantined_by_a_second_commit() -> None:
    """The outcome is reported when the events that the database has refused are quarantined."""
    bench = Bench()
    submission = make_mixed_submission(3, 1)
    results = bench.submit(submission)
    conflict = Outcome(conflicts=frozenset([1]), duplicates=frozenset([0]))
    bench.commits.pending.pop(0)[1].callback([conflict])
    assert results == []
    ((refused,), _) = bench.commits.pending[0]
    assert (refused.rows, list(refused.invalid)) == ({}, [1])
    assert refused.invalid[1].event_id == submission.rows[1].event_id
    assert refused.invalid[1].text is not None
    assert bench.committer.load.events == 1
    bench.commits.end()
    assert results == [conflict]
    settled = {entry: count for entry, count in bench.ledger.settled.items() if count}
    assert settled == {
        ("stored", ""): 1,
        ("duplicate", ""): 1,
        ("quarantined", "invalid_schema"): 1,
        ("quarantined", "event_id_conflict"): 1,
    }


def test_second_commit_fails() -> None:
    """If refused events cannot be quarantined, the submission fails, so that the client sends it again."""
    bench = Bench()
    results = bench.submit(make_submission(2))
    bench.commits.pending.pop(0)[1].callback([Outcome(conflicts=frozenset([1]))])
    error = Unavailable("away")
    bench.commits.fail(error)
    assert results == [error]
    assert bench.ledger.settled["stored", ""] == 1
    assert bench.ledger.settled[REFUSED, StorageUnavailable.code] == 1
    assert bench.committer.load.events == 0


def test_refused_events_of_a_request_that_ended() -> None:
    """If nothing waits for the outcome anymore, the second commit is not made: the client sends the events again."""
    bench = Bench()
    bench.submit(make_submission(2))
    bench.advance(11)
    bench.commits.pending.pop(0)[1].callback([Outcome(conflicts=frozenset([1]))])
    assert bench.commits.pending == []
    assert bench.ledger.settled[REFUSED, GIVEN_UP] == 1


@pytest.mark.parametrize("stored", [0, 1])
def test_nonce_of_refused_events(stored: int) -> None:
    """The second commit uses the nonce, unless the first one has stored a part of the submission."""
    bench = Bench()
    results = bench.submit(make_submission(2, nonce="a"))
    conflicts = Outcome(conflicts=frozenset(range(stored, 2)))
    bench.commits.pending.pop(0)[1].callback([conflicts])
    (((refused,), done),) = bench.commits.pending
    assert refused.nonce == (None if stored else "a")
    done.callback([Outcome(nonce_reused=True)])
    assert results == [replace(conflicts, nonce_reused=True)]
