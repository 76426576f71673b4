"""What commands print: a table for people, JSON for programs, a bar for those who wait."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_WIDE = 10_000

Record = Mapping[str, Any]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def json_option(command: _Command) -> _Command:
    """``--json``, for every command that prints data. Passed on as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def print_records(records: Sequence[Record], *, as_json: bool, empty: str) -> None:
    """Print several things of a kind.

    :param empty: what to tell people where there are none.
    """
    if as_json:
        _print_json(records)
    elif not records:
        click.echo(empty)
    else:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in records[0]:
            table.add_column(_heading(name), no_wrap=True)
        for record in records:
            table.add_row(*map(_text, record.values()))
        console = Console(width=_WIDE)  # a terminal that is too narrow wraps the lines; ids can still be copied
        console.width = console.measure(table).maximum
        console.print(table)


def print_record(record: Record, *, as_json: bool) -> None:
    """Print one thing, a line for each thing that is known of it."""
    if as_json:
        _print_json(record)
    else:
        width = max(map(len, record))
        for name, value in record.items():
            click.echo(f"{_heading(name):{width}}  {_text(value)}")


@contextmanager
def progress(what: str, total: Callable[[], int], *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal, and nothing elsewhere; gives what moves it.

    :param total: how much there is to do, or about; asked only where the bar is seen.
    """
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield lambda _: None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total())
        yield lambda number: bar.advance(task, number)


def _heading(name: str) -> str:
    return name.replace("_", " ")


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone().isoformat(" ", "seconds")
    return f"{value:,}" if isinstance(value, int) else str(value)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, default=_json, indent=2))


def _json(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")
