"""Events of an application as they arrive: each one once."""

from __future__ import annotations

from contextlib import closing

from psycopg2 import connect
from twisted.internet.task import Clock

from tests.support.client import App
from tests.support.database import Database
from tests.support.stored import INSERT, store
from tkserver.operations.apps import find_app
from tkserver.operations.tail import Tail
from tkserver.storage.arrivals import SETTLING_TIME
from tkserver.storage.blocking import Connection


def test_event_that_is_committed_late(database: Database, connection: Connection) -> None:
    """Each event is returned once, also if an event with a higher id was committed before it."""
    app, clock = App().install(database), Clock()
    arrivals = Tail(connection, find_app(connection, app.app_id), clock.seconds)
    with closing(connect(database.dsn)) as slow, slow.cursor() as cursor:
        cursor.execute(INSERT, (app.org_id, app.app_id, "now", "client_slow", 0, 1))
        store(database, app, 1, user="client_fast")
        assert [arrival.user_id for arrival in arrivals.read()] == ["client_fast"]
        clock.advance(SETTLING_TIME - 1)
        assert arrivals.read() == []
        slow.commit()
    assert [arrival.user_id for arrival in arrivals.read()] == ["client_slow"]
    for _ in range(3):
        clock.advance(SETTLING_TIME + 1)
        assert arrivals.read() == []


def test_other_applications_are_not_shown(database: Database, connection: Connection) -> None:
    """Only events of the application are returned."""
    app, other = App().install(database), App().install(database)
    store(database, other, 2)
    store(database, app, 1)
    arrivals = Tail(connection, find_app(connection, app.app_id), Clock().seconds)
    assert len(arrivals.read()) == 1


def test_earlier_events_are_not_returned_later(database: Database, connection: Connection) -> None:
    """Events that precede the first ones are left out, also when more arrive."""
    app = App().install(database)
    store(database, app, 5, user="client_earlier")
    for limit in (0, 2):
        arrivals = Tail(connection, find_app(connection, app.app_id), Clock().seconds)
        assert len(arrivals.read(limit)) == limit
        assert arrivals.read() == []
        store(database, app, 1, user=f"client_{limit}")
        assert [arrival.user_id for arrival in arrivals.read()] == [f"client_{limit}"]


def test_events_of_others_are_not_read_again_and_again(database: Database, connection: Connection) -> None:
    """The position advances with the events of all applications."""
    app, other, clock = App().install(database), App().install(database), Clock()
    arrivals = Tail(connection, find_app(connection, app.app_id), clock.seconds)
    store(database, other, 3)
    for _ in range(2):
        assert arrivals.read() == []
        clock.advance(SETTLING_TIME)
    assert [position.read_from for position in arrivals._positions] == [3, 0]
