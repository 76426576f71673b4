"""Many requests, one commit: who is written with whom, and what each is told."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from tests.support.events import make_event
from tkserver.ingest import committer as module
from tkserver.ingest.committer import Committer, QueueLimits
from tkserver.storage.errors import Collision, DataRefused, Inseparable, Unavailable
from tkserver.storage.events import Outcome, Submission
from tkserver.wire.api_errors import Overloaded
from tkserver.wire.batch import read_batch

DUPLICATE = Outcome(duplicates=frozenset({0}))

ORG, APP = uuid.uuid4(), uuid.uuid4()


def submission(
    events: int = 1, nonce: str | None = None, *, app: uuid.UUID = APP, has_quota: bool = False
) -> Submission:
    body = json.dumps({"events": [make_event() for _ in range(events)]}).encode()
    return Submission.of(ORG, app, nonce, read_batch(body).events, has_quota=has_quota)


class SlowStore:
    """A store whose commits end when the test says so.

    :ivar commits: what is being written, the oldest first.
    """

    def __init__(self) -> None:
        self.commits: list[tuple[Sequence[Submission], Deferred[list[Outcome]]]] = []
        self.sizes: list[int] = []
        self.culprits: list[Submission] = []

    def store(self, submissions: Sequence[Submission]) -> Deferred[list[Outcome]]:
        self.sizes.append(len(submissions))
        if any(one in self.culprits for one in submissions):
            return fail(DataRefused("check violation"))
        done: Deferred[list[Outcome]] = Deferred()
        self.commits.append((submissions, done))
        return done

    def store_sound_part(self, one: Submission) -> Deferred[Outcome]:
        done: Deferred[Outcome] = Deferred()
        done.callback(Outcome(unstorable=frozenset(one.rows)))
        return done

    def end(self) -> None:
        """The oldest commit is done."""
        submissions, done = self.commits.pop(0)
        done.callback([Outcome(duplicates=frozenset(one.rows)) for one in submissions])


class Bench:
    """A committer on a slow store, and what it has told."""

    def __init__(self, bounds: QueueLimits = QueueLimits()) -> None:  # noqa: B008 -- frozen
        self.store, self.has_quota, self.clock = SlowStore(), SlowStore(), Clock()
        self.committer = Committer(self.store, self.clock, bounds, self.has_quota)

    def submit(self, one: Submission) -> list[object]:
        told: list[object] = []
        self.committer.submit(one).addCallbacks(told.append, lambda failure: told.append(failure.value))
        return told


@pytest.fixture(autouse=True)
def two_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their number is tuned to."""
    monkeypatch.setattr(module, "WRITERS", 2)


def test_a_lone_submission_is_written_at_once() -> None:
    """No timer is waited for, and each gets its own outcome."""
    bench = Bench()
    told = bench.submit(submission(3))
    assert bench.store.sizes == [1]
    bench.store.end()
    assert told == [Outcome(duplicates=frozenset(range(3)))]


def test_what_arrives_meanwhile_is_written_together() -> None:
    """Two commits are under way at once; what waits goes into the next one, in the order in which it came."""
    bench = Bench()
    told = [bench.submit(submission(n)) for n in range(1, 8)]
    assert bench.store.sizes == [1, 1]
    bench.store.end()
    assert bench.store.sizes == [1, 1, 5]
    bench.store.end()
    bench.store.end()
    assert told == [[Outcome(duplicates=frozenset(range(n)))] for n in range(1, 8)]


def test_commits_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In events and in bytes; what is larger by itself is written by itself."""
    monkeypatch.setattr(module, "MAX_COMMIT_EVENTS", 10)
    bench = Bench()
    for events in (1, 1, 6, 4, 5, 30, 1):
        bench.submit(submission(events))
    while bench.store.commits:
        bench.store.end()
    assert bench.store.sizes == [1, 1, 2, 1, 1, 1]
    monkeypatch.setattr(module, "MAX_COMMIT_BYTES", 2 * submission().bytes)
    bench = Bench()
    for _ in range(7):
        bench.submit(submission())
    while bench.store.commits:
        bench.store.end()
    assert bench.store.sizes == [1, 1, 2, 2, 1]


def test_one_nonce_is_not_twice_in_one_commit() -> None:
    """The second request with a nonce is for a later commit to refuse."""
    bench = Bench()
    for nonce in (None, None, "a", "b", "a", "c"):
        bench.submit(submission(nonce=nonce))
    while bench.store.commits:
        bench.store.end()
    assert bench.store.sizes == [1, 1, 2, 2]


def test_a_culprit_costs_nobody_else() -> None:
    """A commit that is refused is split until the culprit stands alone; all others are written."""
    bench = Bench()
    bench.submit(submission())
    bench.submit(submission())
    waiting = [submission() for _ in range(8)]
    bench.store.culprits = [waiting[5]]
    told = [bench.submit(one) for one in waiting]
    with capturedLogs() as said:
        while bench.store.commits:
            bench.store.end()
    assert [event["problem"] for event in said if event.get("event") == "data_refused"] == ["check violation"]
    expected = [[DUPLICATE]] * 8
    expected[5] = [Outcome(unstorable=frozenset({0}))]
    assert told == expected


def test_a_failure_is_everybody_s() -> None:
    """When a commit fails, each of its submissions is told, and the next one is written."""
    bench = Bench()
    told = [bench.submit(submission()) for _ in range(4)]
    error = Unavailable("away")
    bench.store.commits.pop(0)[1].errback(error)
    bench.store.end()
    bench.store.end()
    assert told == [[error], *[[DUPLICATE]] * 3]


def test_timeout() -> None:
    """A submission that waits for too long is given up: not written if it still waited, and no news if it was."""
    bench = Bench(QueueLimits(timeout=10))
    told = [bench.submit(submission()) for _ in range(3)]
    bench.clock.advance(10)
    assert all(isinstance(one[0], Unavailable) for one in told)
    bench.store.end()
    bench.store.end()
    assert bench.store.sizes == [1, 1]
    assert [len(one) for one in told] == [1, 1, 1]


@pytest.mark.parametrize("bounds", [QueueLimits(events=10), QueueLimits(bytes=10 * submission().bytes)])
def test_water_marks(bounds: QueueLimits) -> None:
    """At the bound nothing more is taken, until no more than half of it is left."""
    bench = Bench(bounds)
    for _ in range(10):
        bench.submit(submission())
    with pytest.raises(Overloaded):
        bench.submit(submission())
    bench.store.end()  # 9 left: 1 being written, 8 in the commit that begins now
    with pytest.raises(Overloaded):
        bench.committer.check_load()
    bench.store.end()
    bench.store.end()
    bench.committer.check_load()
    bench.submit(submission())


def test_cancelled_while_it_waits() -> None:
    """What nobody waits for any more is not written, if it still can be helped."""
    bench = Bench()
    for _ in range(2):
        bench.submit(submission())
    bench.committer.submit(submission()).addErrback(lambda _: None).cancel()
    bench.store.end()
    bench.store.end()
    assert bench.store.sizes == [1, 1]


def test_lanes() -> None:
    """Applications that have a quota: one commit of each at a time, in turn, and nobody without one waits for them."""
    bench = Bench()
    apps = [uuid.uuid4() for _ in range(3)]
    told = [bench.submit(submission(app=app, has_quota=True)) for _ in range(3) for app in apps]
    assert [lane[0].app_id for lane, _ in bench.has_quota.commits] == apps[:2]
    without = bench.submit(submission())
    bench.store.end()
    assert without == [DUPLICATE]
    written = []
    while bench.has_quota.commits:
        group = bench.has_quota.commits[0][0]
        written.append((apps.index(group[0].app_id), len(group)))
        bench.has_quota.end()
        under_way = [lane[0].app_id for lane, _ in bench.has_quota.commits]
        assert len(under_way) == len(set(under_way)) <= 2
    assert written == [(0, 1), (1, 1), (2, 3), (0, 2), (1, 2)]
    assert told == [[DUPLICATE]] * 9


def test_a_lane_that_is_answered_and_sent_to_at_once() -> None:
    """What is submitted while the last of a lane is told its outcome is still written one after the other."""
    bench = Bench()
    first = bench.committer.submit(submission(has_quota=True))
    again = [bench.submit for _ in range(2)]
    first.addCallback(lambda _: [submit(submission(has_quota=True)) for submit in again])
    bench.has_quota.end()
    assert bench.has_quota.sizes == [1, 2]
    bench.has_quota.end()
    bench.submit(submission(has_quota=True))
    assert bench.has_quota.sizes == [1, 2, 1]


def test_what_cannot_be_said_together() -> None:
    """Submissions of which it cannot be said together what fits are asked about in halves."""
    bench = Bench()
    told = [bench.submit(submission(has_quota=True)) for _ in range(5)]
    bench.has_quota.end()
    bench.has_quota.commits.pop(0)[1].errback(Inseparable("they do not fit together"))
    while bench.has_quota.commits:
        bench.has_quota.end()
    assert bench.has_quota.sizes == [1, 4, 2, 2]
    assert told == [[DUPLICATE]] * 5


def test_a_collision_costs_nobody_else() -> None:
    """Submissions whose commit goes on colliding are written in halves; who collides alone is told."""
    bench = Bench()
    bench.submit(submission())
    bench.submit(submission())
    told = [bench.submit(submission()) for _ in range(3)]
    bench.store.end()
    bench.store.end()
    collision = Collision("serialization failure (40001)")
    bench.store.commits.pop(0)[1].errback(collision)
    bench.store.commits.pop(0)[1].errback(collision)
    while bench.store.commits:
        bench.store.end()
    assert bench.store.sizes == [1, 1, 3, 1, 2]
    assert told == [[collision], [DUPLICATE], [DUPLICATE]]


def test_a_lane_that_is_stuck() -> None:
    """It takes up no more than its share, and takes more again when it moves."""
    bench = Bench(QueueLimits(events=40))
    for _ in range(10):
        bench.submit(submission(has_quota=True))
    with pytest.raises(Overloaded):
        bench.submit(submission(has_quota=True))
    for other in (submission(), submission(app=uuid.uuid4(), has_quota=True)):
        bench.submit(other)
    bench.has_quota.end()
    bench.submit(submission(has_quota=True))
