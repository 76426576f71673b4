"""An application is alone if no other one has sent a request for some time."""

from __future__ import annotations

from uuid import UUID

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from tests.support.client import App
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.server import client_of, running_server
from tkserver.ingest.active_applications import ACTIVE_TIME, ActiveApplications, Application

FIRST, SECOND = (1, 1), (1, 2)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def active(clock: Clock) -> ActiveApplications:
    return ActiveApplications(clock.seconds)


def test_first_application_is_alone(active: ActiveApplications) -> None:
    """An application is alone before and after the first request, which is its own."""
    assert active.is_alone(FIRST)
    active.note_request(FIRST)
    assert active.is_alone(FIRST)
    assert not active.is_alone(SECOND)


def test_other_application_is_active_for_some_time(active: ActiveApplications, clock: Clock) -> None:
    """An application is not alone until some time has passed after the last request of another one."""
    active.note_request(FIRST)
    active.note_request(SECOND)
    assert not active.is_alone(FIRST)
    assert not active.is_alone(SECOND)
    clock.advance(ACTIVE_TIME + 0.1)
    active.note_request(SECOND)
    assert active.is_alone(SECOND)
    active.note_request(FIRST)
    assert not active.is_alone(SECOND)


@pytest_twisted.ensureDeferred
async def test_request_with_a_single_event_counts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest requests make an application active; requests with a wrong signature do not."""
    noted: list[Application] = []
    monkeypatch.setattr(ActiveApplications, "note_request", lambda _, application: noted.append(application))
    app = App().install(database)
    async with running_server(database) as server:
        client = client_of(server)
        assert (await client.send(app, [make_event()])).status == 200
        assert (await client.send(App(app.org_id, app.app_id), [make_event()])).status == 401
    assert noted == [(UUID(app.org_id).int, UUID(app.app_id).int)]
