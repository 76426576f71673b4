"""``tkserver stats``: statistics of an application."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone

import click
from rich.console import Console

from tkserver.cli.database import open_database, sleep
from tkserver.cli.output import counted, json_option, print_json, print_line, progress_bar
from tkserver.cli.parameters import duration_of
from tkserver.cli.stats_text import print_panel, print_summary
from tkserver.config import load
from tkserver.operations import statistics
from tkserver.operations.apps import find_app
from tkserver.operations.models import App
from tkserver.operations.statistics import PANEL_NAMES, Json, is_applicable
from tkserver.storage.blocking import Connection


@click.command()
@click.argument("app")
@click.argument("panel", required=False)
@click.option("--days", help="The last days, including today.  [default: 30]")
@click.option("--from", "from_", metavar="DAY", help="First day, such as 2026-01-31 or 7d (ago).")
@click.option("--to", metavar="DAY", help="Last day; by default, today.")
@click.option("--ci", help="exclude, include or only: events of CI.  [default: exclude]")
@click.option("--version", help="Only events of this version.")
@click.option("--os", help="Only events on this operating system.")
@click.option("--arch", help="Only events on this architecture.")
@click.option("--name", help="Only events of this command, feature or custom type.")
@json_option
def stats(app: str, panel: str | None, as_json: bool, from_: str | None, **options: str | None) -> None:
    """Show how an application is used.

    Without PANEL, print a summary. PANEL is overview, commands, versions, releases, errors, environment, retention or
    quality. With --json, print the panel (by default overview) as docs/insight.md describes it.

    "tkserver stats rebuild APP" computes the aggregates again from the events, or waits until a server has done so.
    """
    parameters = {name: value for name, value in {**options, "from": from_}.items() if value is not None}
    with open_database(load({})) as connection:
        if app == "rebuild" and panel is not None and panel not in PANEL_NAMES:
            _rebuild(connection, panel)
            return
        found = find_app(connection, app)
        parameters |= _days(connection, found, parameters)
        with progress_bar("aggregating", lambda: statistics.lag(connection)) as advance:
            is_current = statistics.refresh(connection, sleep, advance)
        if not is_current and (missing := statistics.lag(connection)):
            print_line(
                f"Another process is aggregating. Not included yet: about {counted(missing, 'event')}.", error=True
            )

        def read(name: str) -> Json:
            applicable = {key: text for key, text in parameters.items() if panel or is_applicable(name, key)}
            return statistics.read_panel(connection, found, name, applicable, datetime.now(timezone.utc))

        if found.staging and not as_json:
            print_line(f"{found.title}: these events are for tests.", error=True)
        if as_json:
            print_json(read(panel or "overview"))
        elif panel is None:
            print_summary(read, Console(highlight=False))
        else:
            print_panel(panel, read(panel), Console(highlight=False))


def _days(connection: Connection, app: App, parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters that say how long ago a day was, as days."""
    agos = {name: duration_of(parameters[name]) for name in ("from", "to") if name in parameters}
    return {name: statistics.day_before(connection, app, ago) for name, ago in agos.items() if ago is not None}


def _rebuild(connection: Connection, name: str) -> None:
    app = find_app(connection, name)
    statistics.start_rebuild(connection, app)
    with progress_bar("aggregating", lambda: statistics.lag(connection)) as advance:
        statistics.finish_rebuild(connection, app, sleep, advance)
    print_line(f"The statistics of {app.label} have been computed again.")
