"""``tkserver demo``: the events of a simulated population."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from functools import partial
from typing import Any

import click

from tkserver.cli.database import open_database
from tkserver.cli.exit_codes import Failed
from tkserver.cli.output import Record, counted, json_option, print_line, print_record, progress_bar
from tkserver.cli.parameters import HttpUrl, Timestamp
from tkserver.cli.reactor import run
from tkserver.cli.send import command_error, endpoint_of
from tkserver.client import Client, Result, SendError
from tkserver.config import load
from tkserver.demo import Parameters, Population, SampleEvent, seeded
from tkserver.operations import demo as operations
from tkserver.operations.models import Token
from tkserver.operations.tokens import newest_active_token

_TRIES = 8
_PROGRESS_STEP = 100

_SIZES = Parameters()
"""The default size."""


def _size(name: str, maximum: int, help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return an option for a parameter of the population."""
    kind, default = click.IntRange(1, maximum), getattr(_SIZES, name)
    return click.option(f"--{name}", type=kind, default=default, show_default=True, help=help)


@click.command()
@_size("events", 1_000_000_000, "Number of events.")
@_size("days", 3650, "Number of days in which they happen, at most 90 without --direct.")
@_size("users", 10_000_000, "Number of user ids, including those of CI machines.")
@_size("versions", 1000, "Number of releases of the simulated program.")
@_size("commands", 1000, "Number of its commands.")
@click.option("--seed", type=int, default=1, show_default=True, help="Another seed gives other users and events.")
@click.option("--until", type=Timestamp(), help="End of the period: 2026-01-31 (midnight UTC); by default, now.")
@click.option("--direct", is_flag=True, help="Store the events in the database, without a server.")
@click.option("--endpoint", type=HttpUrl(), help="URL of the server; by default, that of the settings.")
@json_option
def demo(seed: int, until: datetime | None, direct: bool, endpoint: str | None, as_json: bool, **sizes: int) -> None:
    """Generate the events of a simulated population, to try or measure statistics.

    They belong to the application sample-cli, which is created if necessary. To delete it: tkserver apps delete
    sample-cli. The same command stores no event twice, because the ids of the events depend only on its options, and
    not on the time.
    """
    if direct and endpoint:
        raise click.UsageError("--direct stores the events without a server: omit --endpoint")
    parameters, now = Parameters(**sizes), datetime.now(timezone.utc)
    operations.check_parameters(parameters)
    population = Population(parameters, until or now, seeded(parameters, seed))
    with progress_bar("storing" if direct else "sending", lambda: parameters.events) as advance:
        record = _store(population, advance) if direct else _send(population, endpoint, now, advance)
    print_record({**record, **_description(population)}, as_json=as_json)
    if not as_json:
        print_line(f"\nTo delete these events: tkserver apps delete {operations.APP_NAME}")


def _store(population: Population, advance: Callable[[int], None]) -> Record:
    with open_database(load({})) as connection:
        app = operations.find_or_create_app(connection)
        stored = operations.DirectStorage(connection, app).store(population.events(), advance)
    number = population.parameters.events
    return _counts(None, Result(accepted=number, duplicates=number - stored))


def _send(population: Population, endpoint: str | None, now: datetime, advance: Callable[[int], None]) -> Record:
    operations.check_age(population, now)
    settings = load({})
    url = endpoint or endpoint_of(settings)
    with open_database(settings) as connection:
        token = newest_active_token(connection, operations.find_or_create_app(connection))
    events = map(operations.as_json, _with_progress(population.events(), advance))
    try:
        result = run(partial(_send_events, url, token, events))
    except SendError as error:
        raise command_error(error, url) from None
    if result.rejected:
        first = result.errors[0]
        raise Failed(f"the server rejected {counted(result.rejected, 'event')}: {first.code}: {first.message}")
    return _counts(url, result)


async def _send_events(url: str, token: Token, events: Iterable[dict[str, Any]], reactor: Any) -> Result:
    credentials = (token.org_id, token.app_id, token.token, token.secret)
    async with Client(url, *credentials, reactor=reactor, tries=_TRIES) as client:
        return await client.send(events)


def _with_progress(events: Iterable[SampleEvent], advance: Callable[[int], None]) -> Iterator[SampleEvent]:
    for number, event in enumerate(events, 1):
        yield event
        if number % _PROGRESS_STEP == 0:
            advance(_PROGRESS_STEP)


def _counts(url: str | None, result: Result) -> Record:
    counts = {"accepted": result.accepted, "rejected": result.rejected, "duplicates": result.duplicates}
    return {"endpoint": url, "app": operations.APP_NAME, **counts}


def _description(population: Population) -> Record:
    """Return what the statistics of these events should show."""
    worse = population.regression
    return {
        "first_release_at": population.start,
        "until": population.until,
        "worse_version": worse and worse.version,
        "failing_command": worse and worse.failing,
        "slower_command": worse and worse.slower,
    }
