"""``tkserver send``: sample events, sent as a program sends its events."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import click

from tkserver import __version__
from tkserver.cli.database import open_database
from tkserver.cli.exit_codes import DatabaseUnavailable, Failed
from tkserver.cli.output import counted, json_option, print_record
from tkserver.cli.parameters import HttpUrl
from tkserver.cli.reactor import run
from tkserver.cli.waiting import waiting_for
from tkserver.client import Client, Event, EventBuilder, NotNow, Result, SendError, service
from tkserver.config import Settings, load
from tkserver.operations.apps import default_app, find_app
from tkserver.operations.models import Token
from tkserver.operations.tokens import newest_active_token

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 -- a server that listens on all addresses
_TRIES = 3


@click.command()
@click.option("--events", type=click.IntRange(1), default=1, show_default=True, help="Number of events.")
@click.option("--app", help="Name or id of the application; by default, the demo application or the first one.")
@click.option("--endpoint", type=HttpUrl(), help="URL of the server; by default, that of the settings.")
@json_option
def send(events: int, app: str | None, endpoint: str | None, as_json: bool) -> None:
    """Send sample events and print the result.

    They are signed with the newest active token of the application, and stored like all other events. Their type is
    sample, and their service is tkserver-send.
    """
    settings = load({})
    url = endpoint or endpoint_of(settings)
    with open_database(settings) as connection:
        found = default_app(connection) if app is None else find_app(connection, app)
        token = newest_active_token(connection, found)
    try:
        with waiting_for(f"the server at {url}"):
            result = run(partial(_send, url, token, events))
    except SendError as error:
        raise command_error(error, url) from None
    counts = {"accepted": result.accepted, "rejected": result.rejected, "duplicates": result.duplicates}
    print_record({"endpoint": url, "app": found.label, **counts}, as_json=as_json)
    if result.rejected:
        raise Failed(f"the server rejected events: {result.errors[0].code}: {result.errors[0].message}")


async def _send(url: str, token: Token, count: int, reactor: Any) -> Result:
    credentials = (token.org_id, token.app_id, token.token, token.secret)
    async with Client(url, *credentials, reactor=reactor, tries=_TRIES) as client:
        return await client.send(_sample_events(count))


def _sample_events(count: int) -> Iterator[Event]:
    """Yield events of one random user. They are numbered from 1."""
    build = EventBuilder(service("tkserver-send", __version__))
    return (build.event("sample", {"number": number}, category="sample") for number in range(1, count + 1))


def endpoint_of(settings: Settings) -> str:
    """Return the URL of a server that runs on this machine with these settings."""
    host, port = settings.server.host, settings.server.port
    if settings.server.endpoint is not None:
        raise click.UsageError(f"the server listens on {settings.server.endpoint}: specify its URL with --endpoint")
    if port == 0:
        raise click.UsageError("the server selects its port when it starts: specify its URL with --endpoint")
    host = _LOOPBACK.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def command_error(error: SendError, url: str) -> click.ClickException:
    """Return the error that a command reports, which says how many events were accepted before."""
    before = f" (accepted before: {counted(error.so_far.accepted, 'event')})" if error.so_far.events else ""
    if error.code == "storage_unavailable":
        return DatabaseUnavailable(f"{url}: {error}{before}")
    if isinstance(error, NotNow) and error.status is None:
        reason = error.message.rstrip(".")
        return Failed(f"{url} cannot be reached: {reason}. Start the server with: twistd -n tkserver{before}")
    return Failed(f"{url} rejected the events: {error}{before}")
