"""Which events the log observer for ``twistd`` writes."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.application.internet import ClientService
from twisted.internet.defer import fail
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.logger import FilteringLogObserver, LogEvent, LogLevel

from tests.support.logs import Lines, observing
from tkserver.log.twistd import MinimumLevel, NoFrameworkMessages, NoReconnections, shows_colours


class Events(Lines):
    """The events of a namespace of Twisted."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        if str(event.get("log_namespace")).startswith("twisted.application"):
            self.events.append(event)


def passes(predicate: Any, event: LogEvent) -> bool:
    written: list[LogEvent] = []
    FilteringLogObserver(written.append, [predicate])(event)  # type: ignore[arg-type]
    return written == [event]


@pytest.mark.parametrize(
    ("event", "passed"),
    [
        ({"log_level": LogLevel.debug}, False),
        ({"log_level": LogLevel.info}, False),
        ({"log_level": LogLevel.warn}, True),
        ({"log_level": LogLevel.critical}, True),
        ({"log_format": "of log.msg"}, False),
        ({"log_format": "of log.err", "isError": 1}, True),
    ],
)
def test_minimum_level(event: LogEvent, passed: bool) -> None:
    """Less severe events are not written; events without a level count as info, and errors without one as critical."""
    assert passes(MinimumLevel("warn"), event) is passed


@pytest.mark.parametrize(
    ("event", "passed"),
    [
        ({"log_namespace": "twisted.internet.base", "log_level": LogLevel.info}, False),
        ({"log_namespace": "twisted.internet.base", "log_level": LogLevel.warn}, True),
        ({"log_namespace": "log_legacy", "log_level": LogLevel.info}, False),
        ({"log_namespace": "log_legacy", "log_level": LogLevel.info, "warning": "w", "category": "c"}, True),
        ({"log_namespace": "log_legacy", "isError": 1}, True),
        ({"log_namespace": "tkserver.server", "log_level": LogLevel.info}, True),
        ({"log_namespace": "stdout", "log_level": LogLevel.info}, True),
    ],
)
def test_messages_of_the_framework(event: LogEvent, passed: bool) -> None:
    """Messages of Twisted are not written, except warnings and errors."""
    assert passes(NoFrameworkMessages(), event) is passed


@pytest.mark.parametrize(
    ("environment", "is_terminal", "expected"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({}, False, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
    ],
)
def test_colours(environment: dict[str, str], is_terminal: bool, expected: bool) -> None:
    """Colours appear on terminals only, unless a variable says otherwise."""
    assert shows_colours(environment, is_terminal=is_terminal) is expected


def test_reconnections_are_not_written() -> None:
    """Messages of ``ClientService`` about its attempts to connect are not written, but other messages are."""

    class Refusing:
        def connect(self, _: object) -> Any:
            return fail(ConnectError())

    with observing(Events()) as observer:
        service = ClientService(Refusing(), Factory(), clock=Clock())  # type: ignore[arg-type]
        service.startService()
        service.stopService()
    assert observer.events
    assert not any(passes(NoReconnections(), event) for event in observer.events)
    assert passes(NoReconnections(), {"log_level": LogLevel.info, "log_source": Factory()})
