"""``tkserver send``: sample events, sent as a program would send them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import click

from tkserver import __version__
from tkserver.cli.exit_codes import DatabaseUnavailable, Failed, NotFound
from tkserver.cli.output import json_option, print_record
from tkserver.cli.reactor import run
from tkserver.client import Client, Event, EventBuilder, NotNow, Result, SendError, service
from tkserver.config import Settings, load
from tkserver.operations.apps import App, Token
from tkserver.operations.database import connected
from tkserver.storage.blocking import Connection
from tkserver.storage.embedded import demo

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 -- where a server listens, and is reached
_TRIES = 3


@click.command()
@click.option("--events", type=click.IntRange(1), default=1, show_default=True, help="How many.")
@click.option("--app", help="The application's name or id; the demo application, or the first, if left out.")
@click.option("--endpoint", help="The server's URL; by default that of the settings.")
@json_option
def send(events: int, app: str | None, endpoint: str | None, as_json: bool) -> None:
    """Send sample events, signed with the application's newest token, and print the answer.

    The events are stored as any others are: their type is sample, their service tkserver-send.
    """
    url = endpoint or _endpoint(load({}))
    with connected() as connection:
        chosen = _app(connection) if app is None else registry.app(connection, app)
        token = _newest(connection, chosen)
    try:
        result = run(partial(_send, url, token, events))
    except SendError as error:
        raise _explain(error, url) from None
    answer = {"accepted": result.accepted, "rejected": result.rejected, "duplicates": result.duplicates}
    print_record({"endpoint": url, "app": chosen.name or chosen.app_id, **answer}, as_json=as_json)
    if result.rejected:
        raise Failed(f"not accepted: {result.errors[0].code}: {result.errors[0].message}")


async def _send(url: str, token: Token, count: int, reactor: Any) -> Result:
    credentials = (token.org_id, token.app_id, token.token, token.secret)
    async with Client(url, *credentials, reactor=reactor, tries=_TRIES) as client:
        return await client.send(_samples(count))


def _samples(count: int) -> Iterator[Event]:
    build = EventBuilder(service("tkserver-send", __version__))
    return (build.event("sample", {"number": number}, category="sample") for number in range(1, count + 1))


def _endpoint(settings: Settings) -> str:
    host, port = settings.server.host, settings.server.port
    if settings.server.endpoint is not None:
        raise click.UsageError(f"the server listens on {settings.server.endpoint}: name its URL with --endpoint")
    if port == 0:
        raise click.UsageError("the server's port is any free one: name it with --endpoint")
    host = _EVERYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _app(connection: Connection) -> App:
    """The demo application, where the embedded database has it, or else the first."""
    apps = registry.apps(connection)
    if not apps:
        raise NotFound("there are no applications: tkserver apps create NAME")
    return next((app for app in apps if str(app.app_id) == demo.APP_ID), apps[0])


def _newest(connection: Connection, app: App) -> Token:
    for token in registry.tokens(connection, app):
        if token.is_active:
            return token
    raise NotFound(f"it has no active token: tkserver tokens create {app.name or app.app_id}")


def _explain(error: SendError, url: str) -> click.ClickException:
    before = f" ({error.so_far.accepted} were accepted before)" if error.so_far.events else ""
    if error.code == "storage_unavailable":
        return DatabaseUnavailable(f"{url}: {error}{before}")
    if isinstance(error, NotNow) and error.status is None:
        return Failed(f"{url} cannot be reached: {error.message}. Is the server running? twistd -n tkserver{before}")
    return Failed(f"{url} refused: {error}{before}")
