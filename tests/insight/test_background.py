"""The loop of the aggregating process, with a clock of the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone

import pytest

from tests.support.aggregation import plain_event, totals
from tests.support.client import App
from tests.support.database import Database
from tests.support.raw_events import insert
from tkserver.insight import aggregator, background
from tkserver.insight.background import BUSY_SHARE, IDLE_RATE, MAX_PAUSE, BackgroundAggregation, pause_after
from tkserver.insight.facts import DEFINITIONS
from tkserver.insight.messages import Aggregated, Message, Newer, Progress, Rebuilding, State
from tkserver.storage.blocking import BlockingConnections, Connection, rows, value

NOW = datetime(2026, 10, 1, 12, tzinfo=timezone.utc)


class Simulation:
    """Aggregation with a clock of its own.

    :param tick: the seconds by which the clock advances whenever it is read.
    :ivar messages: what was reported.
    :ivar pauses: how long the process slept.
    """

    def __init__(self, connection: Connection, tick: float = 0.0) -> None:
        self.now = 1000.0
        self._tick = tick
        self.messages: list[Message] = []
        self.pauses: list[float] = []
        report = self.messages.append
        self.process = BackgroundAggregation(connection, 5.0, self.clock, self.sleep, report, lambda: NOW)

    def clock(self) -> float:
        self.now += self._tick
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)

    def step(self) -> list[Message]:
        """Let the process look for new events, after a second, and return what it reports except states."""
        self.now += 1
        before = len(self.messages)
        self.process.step()
        return [message for message in self.messages[before:] if not isinstance(message, State)]

    @property
    def state(self) -> State:
        """The last state that was reported."""
        return [message for message in self.messages if isinstance(message, State)][-1]


@contextmanager
def another(database: Database) -> Iterator[Connection]:
    with closing(BlockingConnections().connect(database.dsn)) as connection:
        yield connection


def test_new_events_are_aggregated(connection: Connection, database: Database) -> None:
    """Each look aggregates the events that are stored, and reports how many there were and that none are left."""
    app = App().install(database)
    process = Simulation(connection)
    assert process.step() == []
    insert(connection, app, [plain_event(1), plain_event(2)])
    assert process.step() == [Aggregated(2, 0.0)]
    assert process.state == State(aggregates=True, lag_events=0, lag_seconds=0.0)
    assert process.step() == []
    assert totals(connection, app)["events"] == 2


def test_nothing_is_written_without_new_events(connection: Connection) -> None:
    """Without new events, the time up to which events are aggregated advances once a minute."""
    process = Simulation(connection)
    process.step()
    progress = "SELECT xmin::text, summed_until FROM insight_progress"
    before = rows(connection, progress)
    process.step()
    assert rows(connection, progress) == before
    rows(connection, "UPDATE insight_progress SET summed_until = now() - interval '61 seconds'")
    process.step()
    assert value(connection, "SELECT now() - summed_until FROM insight_progress") < timedelta(seconds=50)


def test_one_process_aggregates(connection: Connection, database: Database) -> None:
    """A second process only reports the lag, and continues when the first one has died."""
    app = App().install(database)
    with another(database) as other:
        first, second = Simulation(other), Simulation(connection)
        first.step()
        insert(connection, app, [plain_event(1)])
        assert second.step() == []
        assert (second.state.aggregates, second.state.lag_events) == (False, 1)
        assert second.state.lag_seconds > 0
        assert first.step() == [Aggregated(1, 0.0)]
        second.step()
        assert second.state == State(aggregates=False, lag_events=0, lag_seconds=0.0)
        insert(connection, app, [plain_event(2)])
    wait_until_gone(connection)
    assert second.step() == [Aggregated(1, 0.0)]
    assert second.state.aggregates
    assert totals(connection, app)["events"] == 2


def wait_until_gone(connection: Connection) -> None:
    """Wait until PostgreSQL has ended the sessions whose connections were closed."""
    others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    for (pid,) in rows(connection, others):
        rows(connection, "SELECT pg_terminate_backend(%s, 5000)", pid)


def test_lock_of_the_background_does_not_keep_commands_from_aggregating(
    connection: Connection, database: Database
) -> None:
    """Between two looks of the process, a command can aggregate the newest events."""
    app = App().install(database)
    with another(database) as other:
        Simulation(other).step()
        insert(connection, app, [plain_event(1)])
        assert aggregator.run_once(connection, lambda _: None) == 1


@pytest.mark.parametrize(
    ("seconds", "rate", "pause"),
    [
        (1.0, 0.0, 0.0),
        (1.0, IDLE_RATE - 1, 0.0),
        (1.0, IDLE_RATE, 1 / BUSY_SHARE - 1),
        (0.1, 20_000.0, 0.1 * (1 / BUSY_SHARE - 1)),
        (100.0, 20_000.0, MAX_PAUSE),
    ],
)
def test_pause_after(seconds: float, rate: float, pause: float) -> None:
    """There are pauses while events are stored at a high rate, in proportion to the work."""
    assert pause_after(seconds, rate) == pytest.approx(pause)


def test_pauses_while_servers_are_busy(connection: Connection, database: Database) -> None:
    """The process pauses after a transaction if many events are stored, and not if few are."""
    app = App().install(database)
    process = Simulation(connection, tick=0.01)
    process.step()
    insert(connection, app, [plain_event(n) for n in (1, 5000)])  # as if 5000 events had been stored
    (aggregated,) = process.step()
    assert isinstance(aggregated, Aggregated)
    assert sum(process.pauses) == pytest.approx(aggregated.seconds * (1 / BUSY_SHARE - 1), abs=0.05)
    assert sum(process.pauses) > 0
    process.pauses.clear()
    insert(connection, app, [plain_event(5001)])
    process.step()
    assert process.pauses == []


def test_pause_ends_when_servers_are_not_busy_anymore(connection: Connection, database: Database) -> None:
    """After a long transaction, the process pauses only as long as many events are stored."""
    app = App().install(database)
    process = Simulation(connection, tick=2.0)
    process.step()
    insert(connection, app, [plain_event(1)])

    def report(message: Message) -> None:
        if isinstance(message, Aggregated):
            insert(connection, app, [plain_event(500_000)])  # as if as many events had been stored meanwhile

    process.process._report = report
    process.step()
    assert process.pauses == [background.STATE_INTERVAL]


def test_progress_of_a_long_aggregation(
    connection: Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The progress is reported at the beginning, then after each interval, and at the end."""
    monkeypatch.setattr(aggregator, "BATCH", 10)
    monkeypatch.setattr(background, "LONG", 25)
    app = App().install(database)
    insert(connection, app, [plain_event(n) for n in range(1, 61)])
    process = Simulation(connection, tick=background.PROGRESS_INTERVAL / 4)
    messages = process.step()
    assert sum(message.events for message in messages if isinstance(message, Aggregated)) == 60
    progress = [message for message in messages if isinstance(message, Progress)]
    assert progress[0] == Progress(0, 60)
    assert progress[-1] == Progress(60, 0)
    assert len(progress) > 2
    assert all(message.done + message.remaining == 60 for message in progress)


def test_short_aggregations_report_no_progress(connection: Connection, database: Database) -> None:
    """A few events are no news."""
    app = App().install(database)
    insert(connection, app, [plain_event(n) for n in range(1, 61)])
    assert Simulation(connection).step() == [Aggregated(60, 0.0)]


def test_new_definitions(connection: Connection, database: Database) -> None:
    """Aggregates with older definitions are computed again, which is reported."""
    app = App().install(database)
    insert(connection, app, [plain_event(1)])
    process = Simulation(connection)
    process.step()
    rows(connection, "UPDATE insight_progress SET definitions = definitions - 1")
    rows(connection, "UPDATE insight_cells SET events = 99")
    assert process.step() == [Rebuilding(), Aggregated(1, 0.0)]
    assert totals(connection, app)["events"] == 1


def test_newer_definitions(connection: Connection, database: Database) -> None:
    """Aggregates of a newer version are not changed, which is reported once, also not by a command."""
    app = App().install(database)
    process = Simulation(connection)
    process.step()
    rows(connection, "UPDATE insight_progress SET definitions = %s", DEFINITIONS + 1)
    insert(connection, app, [plain_event(1)])
    assert process.step() == [Newer()]
    assert process.step() == []
    assert aggregator.run_once(connection, lambda _: None) is None
    assert value(connection, "SELECT watermark FROM insight_progress") == 0
    rows(connection, "UPDATE insight_progress SET definitions = %s", DEFINITIONS)
    assert process.step() == [Aggregated(1, 0.0)]


def test_change_of_timezone(connection: Connection, database: Database) -> None:
    """The aggregates are computed again when the time zone of an application changes, without new events."""
    app = App().install(database)
    database.query("INSERT INTO apps (org_id, app_id, name) VALUES (%s, %s, %s)", app.org_id, app.app_id, "x")
    insert(connection, app, [plain_event(1)])
    process = Simulation(connection)
    process.step()
    database.query("UPDATE apps SET timezone = 'Pacific/Auckland'")
    assert process.step() == [Aggregated(1, 0.0)]
    assert value(connection, "SELECT timezone FROM insight_apps") == "Pacific/Auckland"


def test_new_events_do_not_wait_for_a_rebuild(
    connection: Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the aggregates of an application are computed again, new events of others are aggregated."""
    monkeypatch.setattr(aggregator, "BATCH", 10)
    app, other = App().install(database), App().install(database)
    insert(connection, app, [plain_event(n) for n in range(1, 101)])
    aggregator.run_once(connection, lambda _: None)
    aggregator.rebuild(connection, app.app_id, app.org_id)
    seen: list[tuple[int, int]] = []

    def after_batch(_: int) -> None:
        if not seen:
            insert(connection, other, [plain_event(101)])
        seen.append((totals(connection, app)["events"], totals(connection, other)["events"]))

    assert aggregator.run_once(connection, lambda _: None, after_batch) == 101
    assert seen[0] == (10, 0)
    assert next(own for own, others in seen if others) < 100
    assert seen[-1] == (100, 1)


def test_estimate_of_a_rebuild(connection: Connection, database: Database) -> None:
    """The lag contains the events that are aggregated again."""
    app = App().install(database)
    insert(connection, app, [plain_event(n) for n in range(1, 101)])
    assert aggregator.lag(connection) == 100
    aggregator.run_once(connection, lambda _: None)
    assert aggregator.lag(connection) == 0
    aggregator.rebuild(connection, app.app_id, app.org_id)
    status = aggregator.status(connection)
    assert (status.lag_events, status.lag_seconds, status.rebuilding) == (100, 0.0, 1)


def test_lag_is_reported_while_a_transaction_is_awaited(connection: Connection, database: Database) -> None:
    """If a transaction that stores events does not end, the lag grows and is reported."""
    app = App().install(database)
    with another(database) as other:
        other.autocommit = False
        insert(other, app, [plain_event(1)])
        insert(connection, app, [plain_event(2)])
        process = Simulation(connection)

        def sleep(seconds: float) -> None:
            process.now += seconds
            if process.now > 1005:
                other.commit()

        process.process._sleep = sleep
        assert process.step() == [Aggregated(2, 0.0)]
    waiting = [message for message in process.messages if isinstance(message, State) and message.lag_events]
    assert len(waiting) > 3
