"""Formats of exported events: NDJSON, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from typing import Any, BinaryIO, Protocol
from uuid import UUID

import msgspec
from msgspec import Raw

from tkserver.operations.exceptions import MissingPackage
from tkserver.operations.export import StoredEvent
from tkserver.spreadsheets import escape_formula
from tkserver.wire.event import MAX_EVENT_BYTES, Environment, Event, Metadata, Occurrence, Service

ROW_GROUP_ROWS = 50_000
"""The maximum number of rows in a row group of Parquet, which may be exceeded by one chunk."""

ROW_GROUP_BYTES = 32 << 20
"""The maximum size of a row group before compression, which may be exceeded by one chunk."""


class Writer(Protocol):
    """Writes events to a file in one format."""

    def write(self, events: Sequence[StoredEvent]) -> None: ...

    def close(self) -> None:
        """Write buffered events and the end of the format. Do not close the file."""


class NdjsonWriter:
    """Writes one event per line, in the format of the API: as it was sent, and as it can be sent again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._encoder = msgspec.json.Encoder()

    def write(self, events: Sequence[StoredEvent]) -> None:
        self._file.write(b"".join([self._line(event) + b"\n" for event in events]))

    def _line(self, event: StoredEvent) -> bytes:
        line = self._encoder.encode(wire_event(event))
        return line if len(line) <= MAX_EVENT_BYTES else self._encoder.encode(shortest_form(event))

    def close(self) -> None:
        pass


class CsvWriter:
    """CSV (RFC 4180) with a header line. Null values are empty, times are in the format of RFC 3339.

    :param raw: write values unchanged. Otherwise, values that a spreadsheet would take for a formula get an apostrophe.
    """

    def __init__(self, file: BinaryIO, *, raw: bool = False) -> None:
        self._file = file
        self._escape = str if raw else escape_formula
        self._write_lines([StoredEvent._fields])

    def write(self, events: Sequence[StoredEvent]) -> None:
        self._write_lines([self._escape(_csv_cell(value)) for value in event] for event in events)

    def close(self) -> None:
        pass

    def _write_lines(self, lines: Iterable[Sequence[str]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(lines)
        self._file.write(text.getvalue().encode())


class ParquetWriter:
    """Parquet with the columns of the table. ``event_data`` is a string that contains JSON.

    :raise MissingPackage: if pyarrow is not installed.
    """

    def __init__(self, file: BinaryIO) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise MissingPackage("Parquet needs pyarrow; install it with: pip install 'tkserver[parquet]'") from None
        self._pyarrow = pyarrow
        self._schema = pyarrow.schema([_parquet_field(pyarrow, name) for name in StoredEvent._fields])
        self._writer = parquet.ParquetWriter(pyarrow.PythonFile(file, mode="w"), self._schema, compression="zstd")
        self._buffered: list[Any] = []

    def write(self, events: Sequence[StoredEvent]) -> None:
        columns = zip(*events, strict=True)
        arrays = [
            self._pyarrow.array(values, type=field.type) for field, values in zip(self._schema, columns, strict=True)
        ]
        self._buffered.append(self._pyarrow.record_batch(arrays, schema=self._schema))
        rows = sum(batch.num_rows for batch in self._buffered)
        if rows >= ROW_GROUP_ROWS or sum(batch.nbytes for batch in self._buffered) >= ROW_GROUP_BYTES:
            self._write_row_group()

    def close(self) -> None:
        if self._buffered:
            self._write_row_group()
        self._writer.close()

    def _write_row_group(self) -> None:
        table = self._pyarrow.Table.from_batches(self._buffered, schema=self._schema)
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._buffered = []


WRITERS: dict[str, Callable[[BinaryIO], Writer]] = {
    "ndjson": NdjsonWriter,
    "csv": CsvWriter,
    "parquet": ParquetWriter,
}
"""Writers by the names of their formats."""


def write_events(
    chunks: Iterable[Sequence[StoredEvent]],
    file: BinaryIO,
    format_name: str,
    progress: Callable[[int], object] = lambda _: None,
    *,
    raw: bool = False,
) -> int:
    """Write events to a file.

    :param format_name: a key of ``WRITERS``.
    :param progress: called after each chunk with the number of events in it.
    :param raw: see :class:`CsvWriter`.
    :return: the number of events.
    :raise MissingPackage: if the format needs a package that is not installed.
    """
    writer = CsvWriter(file, raw=True) if raw and format_name == "csv" else WRITERS[format_name](file)
    count = 0
    for chunk in chunks:
        writer.write(chunk)
        count += len(chunk)
        progress(len(chunk))
    writer.close()
    return count


def wire_event(row: StoredEvent) -> Event:
    """Return the event that was stored as this row."""
    return Event(
        schema_version=row.schema_version,
        event_id=UUID(row.event_id),
        timestamp=row.timestamp,
        service=Service(row.service_name, row.service_version, row.service_language, row.service_language_version),
        user_id=row.user_id,
        environment=Environment(row.os, row.os_version, row.arch, row.ci, row.shell),
        event=Occurrence(row.event_type, Raw(_compact(row.event_data)), row.event_category),
        metadata=Metadata(row.sdk_version, row.transmission_timestamp, row.batch_size, row.retry_count),
        session_id=row.session_id,
    )


def _compact(text: str) -> bytes:
    """Return JSON without the spaces that PostgreSQL adds."""
    return msgspec.json.format(text.encode(), indent=-1)


def shortest_form(row: StoredEvent) -> dict[str, object]:
    """Return an event such that its JSON is not longer than when it was sent, so that it can be sent again.

    PostgreSQL writes numbers without exponents, ids with dashes, and msgspec writes all six digits of microseconds.
    """
    event = wire_event(row)
    metadata = msgspec.structs.asdict(event.metadata)
    data = Raw(shorten_numbers(bytes(event.event.data)))
    changed = {
        "event_id": event.event_id.hex,
        "timestamp": _shortest_time(row.timestamp),
        "event": msgspec.structs.replace(event.event, data=data),
        "metadata": {**metadata, "transmission_timestamp": _shortest_time(row.transmission_timestamp)},
    }
    return {name: value for name, value in {**msgspec.structs.asdict(event), **changed}.items() if value is not None}


def _shortest_time(time: datetime) -> str:
    text = time.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f").rjust(26, "0")
    return text.rstrip("0").rstrip(".") + "Z"


_STRING_OR_NUMBER = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|\d+(?:\.\d+)?', re.DOTALL)


def shorten_numbers(text: bytes) -> bytes:
    """Write numbers with many zeros with an exponent, so that PostgreSQL reads exactly the same value and scale."""
    return _STRING_OR_NUMBER.sub(_shorten_number, text)


def _shorten_number(match: re.Match[bytes]) -> bytes:
    number = match[0]
    if number.startswith(b'"'):
        return number
    integral, point, fraction = number.partition(b".")
    if point:
        digits = (integral + fraction).lstrip(b"0") or b"0"
        shorter = b"%se-%d" % (digits, len(fraction))
    else:
        digits = integral.rstrip(b"0") or b"0"
        shorter = b"%se%d" % (digits, len(integral) - len(digits))
    return min(number, shorter, key=len)


_TIMES = {"timestamp", "transmission_timestamp", "received_at"}
_INTEGERS = {"batch_size", "retry_count"}
_OPTIONAL = {"service_language_version", "session_id", "os_version", "arch", "ci", "shell", "event_category"}


def _parquet_field(pyarrow: Any, name: str) -> Any:
    if name in _TIMES:
        data_type = pyarrow.timestamp("us", tz="UTC")
    elif name in _INTEGERS:
        data_type = pyarrow.int32()
    else:
        data_type = pyarrow.bool_() if name == "ci" else pyarrow.string()
    return pyarrow.field(name, data_type, nullable=name in _OPTIONAL)


def _csv_cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
