"""Output of commands: tables for people, JSON for programs, and progress bars."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone
from typing import Any, BinaryIO, Literal, TypeVar
from uuid import UUID

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tkserver.cli.waiting import not_waiting

Record = Mapping[str, Any]
"""Values by the names of their columns."""

SHORT_ID_LENGTH = 8
"""Characters of an id in a table. Commands accept them instead of the id."""

_UNLIMITED_WIDTH = 10_000

_Command = TypeVar("_Command", bound=Callable[..., Any])


def json_option(command: _Command) -> _Command:
    """Add the option ``--json``, whose value is passed as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def print_records(
    records: Sequence[Record], *, as_json: bool, empty: str, table: Sequence[Record] | None = None
) -> None:
    """Print records of the same kind, as a table or a JSON array.

    In a table, ids are short, and times are relative to now.

    :param empty: what to print instead of a table without rows.
    :param table: the records as people read them, if they are others.
    """
    if as_json:
        print_json(records)
    elif not records:
        print_line(empty)
    else:
        _print_table(records if table is None else table)


def _print_table(records: Sequence[Record]) -> None:
    # A long text is continued in the next line of its cell on a terminal, and otherwise makes the table wide.
    console = Console(markup=False, emoji=False, highlight=False)
    on_terminal = console.is_terminal
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, value in records[0].items():
        is_text = any(isinstance(record[name], str) for record in records)
        numeric = isinstance(value, int) and not isinstance(value, bool)
        justify: Literal["right", "left"] = "right" if numeric else "left"
        table.add_column(_heading(name), no_wrap=not (is_text and on_terminal), overflow="fold", justify=justify)
    now = datetime.now(timezone.utc)
    for record in records:
        table.add_row(*(_cell(value, now) for value in record.values()))
    if not on_terminal:
        console.width = _UNLIMITED_WIDTH
        console.width = console.measure(table).maximum
    console.print(table)


def _cell(value: object, now: datetime) -> str:
    if isinstance(value, UUID):
        return str(value)[:SHORT_ID_LENGTH]
    if isinstance(value, datetime) and value not in _INFINITY:
        return relative(value, now)
    return text_of(value)


def relative(time: datetime, now: datetime) -> str:
    """Return when a time is, such as ``5 min ago`` or ``in 23 h``; the date if it is far away."""
    seconds = (now - time).total_seconds()
    size, unit = next((pair for pair in _SHORT_UNITS if abs(seconds) >= pair[0]), (1, "s"))
    number = int(abs(seconds) // size)
    if unit == "d" and number > MAX_DAYS:
        return time.date().isoformat()
    return f"{number} {unit} ago" if seconds >= 0 else f"in {number} {unit}"


_SHORT_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))

MAX_DAYS = 99
"""Days up to which times are relative to now."""


def print_record(record: Record, *, as_json: bool) -> None:
    """Print one record, as lines of names and values or as a JSON object."""
    if as_json:
        print_json(record)
    else:
        width = max(map(len, record))
        for name, value in record.items():
            print_line(f"{_heading(name):{width}}  {text_of(value)}")


def print_line(text: str, *, error: bool = False) -> None:
    """Print a line. It may contain values of any origin.

    :param error: print to standard error.
    """
    click.echo(printable(text), err=error)


# Control characters, and those that change the direction of text or are invisible.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def printable(text: str) -> str:
    """Replace characters that must not reach a terminal by escapes such as ``\\u001b``; keep tabs and line breaks."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number with a noun, such as ``1 event`` or ``1,234 events``."""
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"


_UNITS = ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def duration(time: timedelta) -> str:
    """Return a duration in its largest unit of which it is a multiple, such as ``7 days`` or ``90 minutes``."""
    seconds = int(time.total_seconds())
    size, unit = next((size, unit) for size, unit in _UNITS if not seconds % size and (seconds or size == 1))
    return counted(seconds // size, unit)


class TerminalWriter(io.RawIOBase):
    """Writes UTF-8 text to a terminal, with unprintable characters as escapes, which JSON also understands.

    :param stream: of the terminal.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Write complete lines."""
        lines = bytes(data).decode().replace("\r\n", "\n")
        self._stream.write(printable(lines).encode())
        return len(data)

    def flush(self) -> None:
        self._stream.flush()


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
    amount = total()
    with not_waiting(), Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=amount)
        yield lambda amount: bar.advance(task, amount)


def _heading(name: str) -> str:
    return name.replace("_", " ")


def text_of(value: object) -> str:
    """Return a value as people read it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return _local_time(value)
    return f"{value:,}" if isinstance(value, int) else printable(str(value))


def _local_time(time: datetime) -> str:
    if time in _INFINITY:
        return _INFINITY[time]
    try:
        return time.astimezone().isoformat(" ", "seconds")
    except OverflowError:  # it is within a day of the limits of Python
        return time.isoformat(" ", "seconds")


_INFINITY = {
    datetime.max.replace(tzinfo=timezone.utc): "infinity",
    datetime.min.replace(tzinfo=timezone.utc): "-infinity",
}
"""What stands for infinity in the database, and for times that Python cannot represent."""


def print_json(value: object) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, default=_json_value, indent=2))


def _json_value(value: object) -> str:
    if isinstance(value, date):  # or a datetime
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be converted to JSON")
