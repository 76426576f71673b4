"""The number of modules through which one request passes."""

from __future__ import annotations

import io
import sys
from collections.abc import Coroutine
from types import FrameType
from typing import Any

import pytest_twisted
from twisted.internet import reactor

from tests.support.client import App, Client
from tests.support.database import Database
from tests.support.events import make_event
from tests.support.scrape import scrape
from tests.support.server import client_of, running_server
from tests.support.source import ROOT
from tests.support.waiting import until
from tkserver.log.formatters import format_json
from tkserver.log.observer import LineObserver, StreamSink
from tkserver.server.supervisor import Supervisor

PACKAGE = f"{ROOT / 'tkserver'}/"

MAX_MODULES = 25

TRACES = 3
"""A module that is not in every trace was called by a timer."""

TIMERS = {"server/reactor_lag.py"}
"""Modules with timers of such short intervals that they may be in every trace."""


@pytest_twisted.ensureDeferred
async def test_modules_per_request(database: Database) -> None:
    """An ingest request passes through few modules, from the connection to the line in the log and the metrics."""
    async with running_server(database, TK__RATE_LIMIT__AUTH_FAILURES_PER_MINUTE=60) as server:
        client, app, log = client_of(server), App().install(database), io.BytesIO()
        write_access_log(server, log)
        await until(lambda: server.worker.components.changes.listening)
        await send_and_log(client, app, log)  # so that the credential is cached
        traces = [await trace(send_and_log(client, app, log)) for _ in range(TRACES)]
        metrics = await scrape(server.admin_port)
    assert metrics.sum("tkserver_http_requests_total", status="200", method="POST") == 1 + TRACES
    modules = set.intersection(*traces) - TIMERS
    assert {"web/listen/listener.py", "storage/connection.py", "server/metrics.py", "log/formatters.py"} <= modules
    assert len(modules) <= MAX_MODULES, f"{len(modules)}: {', '.join(sorted(modules))}"


def write_access_log(server: Supervisor, log: io.BytesIO) -> None:
    """Write the access log of a server to a stream."""
    observer = LineObserver(format_json, StreamSink(log), reactor)
    server.worker.components.access_log.write_to(observer.write_request)


async def send_and_log(client: Client, app: App, log: io.BytesIO) -> None:
    """Send a batch on a new connection, and wait for its line in the log."""
    lines = log.getvalue().count(b"\n")
    assert (await client.send(app, [make_event()])).status == 200
    await until(lambda: log.getvalue().count(b"\n") > lines)


async def trace(work: Coroutine[Any, Any, None]) -> set[str]:
    """Return the modules of the package in which functions are called before some work ends."""
    modules: set[str] = set()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(PACKAGE):
            modules.add(path.removeprefix(PACKAGE))

    sys.setprofile(profile)
    try:
        await work
    finally:
        sys.setprofile(None)
    return modules
