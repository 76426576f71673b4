"""Output of commands: tables for people, JSON for programs, and progress bars."""

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

Record = Mapping[str, Any]
"""Values by the names of their columns."""

_UNLIMITED_WIDTH = 10_000

_Command = TypeVar("_Command", bound=Callable[..., Any])


def json_option(command: _Command) -> _Command:
    """Add the option ``--json``, whose value is passed as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def print_records(records: Sequence[Record], *, as_json: bool, empty: str) -> None:
    """Print records of the same kind, as a table or a JSON array.

    :param empty: what to print instead of a table without rows.
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
        # A terminal that is too narrow wraps the lines. A table that fits would truncate ids, which must be copied.
        console = Console(width=_UNLIMITED_WIDTH)
        console.width = console.measure(table).maximum
        console.print(table)


def print_record(record: Record, *, as_json: bool) -> None:
    """Print one record, as lines of names and values or as a JSON object."""
    if as_json:
        _print_json(record)
    else:
        width = max(map(len, record))
        for name, value in record.items():
            click.echo(f"{_heading(name):{width}}  {_text(value)}")


@contextmanager
def progress_bar(label: str, total: Callable[[], int], *, visible: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error if it is a terminal, and return the function that advances it.

    :param total: returns the total amount of work, at least approximately; called only if the bar is shown.
    """
    console = Console(stderr=True)
    if not (visible and console.is_terminal):
        yield lambda _: None
        return
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=total())
        yield lambda amount: bar.advance(task, amount)


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
    click.echo(json.dumps(value, default=_json_value, indent=2))


def _json_value(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be converted to JSON")
