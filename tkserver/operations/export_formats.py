"""Stored events as NDJSON, CSV or Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import datetime
from typing import Any, BinaryIO, Protocol
from uuid import UUID

import msgspec
from msgspec import Raw

from tkserver.cli.exit_codes import Failed
from tkserver.operations.export import StoredEvent
from tkserver.wire.event import Environment, Event, Metadata, Occurrence, Service

ROW_GROUP_ROWS = 50_000
ROW_GROUP_BYTES = 32 << 20
"""The largest row group of Parquet, in either measure; of bytes before compression, it may exceed it by one chunk."""


class Writer(Protocol):
    """Writes events in one format."""

    def write(self, events: Sequence[StoredEvent]) -> None: ...

    def close(self) -> None:
        """Write what is left. The file stays open."""


class NdjsonWriter:
    """An event a line, as the contract has it: what was sent, and what can be sent again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._encoder = msgspec.json.Encoder()

    def write(self, events: Sequence[StoredEvent]) -> None:
        self._file.write(self._encoder.encode_lines(map(as_sent, events)))

    def close(self) -> None:
        pass


class CsvWriter:
    """RFC 4180, with a line of headings. What is not there is empty; times are RFC 3339."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._line(StoredEvent._fields)

    def write(self, events: Sequence[StoredEvent]) -> None:
        self._line(*([_cell(value) for value in event] for event in events))

    def close(self) -> None:
        pass

    def _line(self, *rows: Sequence[str]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        self._file.write(text.getvalue().encode())


class ParquetWriter:
    """One column for each of the table's; ``event_data`` is JSON in a string.

    :raise Failed: when what writes it is not installed.
    """

    def __init__(self, file: BinaryIO) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise Failed("Parquet needs pyarrow: pip install 'tkserver[parquet]'") from None
        self._pyarrow = pyarrow
        self._schema = pyarrow.schema([_field(pyarrow, name) for name in StoredEvent._fields])
        self._writer = parquet.ParquetWriter(pyarrow.PythonFile(file, mode="w"), self._schema, compression="zstd")
        self._waiting: list[Any] = []

    def write(self, events: Sequence[StoredEvent]) -> None:
        columns = zip(*events, strict=True)
        arrays = [
            self._pyarrow.array(values, type=field.type) for field, values in zip(self._schema, columns, strict=True)
        ]
        self._waiting.append(self._pyarrow.record_batch(arrays, schema=self._schema))
        rows = sum(batch.num_rows for batch in self._waiting)
        if rows >= ROW_GROUP_ROWS or sum(batch.nbytes for batch in self._waiting) >= ROW_GROUP_BYTES:
            self._write_group()

    def close(self) -> None:
        if self._waiting:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        group = self._pyarrow.Table.from_batches(self._waiting, schema=self._schema)
        self._writer.write_table(group, row_group_size=group.num_rows)
        self._waiting = []


WRITERS: dict[str, type[NdjsonWriter] | type[CsvWriter] | type[ParquetWriter]] = {
    "ndjson": NdjsonWriter,
    "csv": CsvWriter,
    "parquet": ParquetWriter,
}


def as_sent(row: StoredEvent) -> Event:
    """The event that was stored as this row."""
    return Event(
        schema_version=row.schema_version,
        event_id=UUID(row.event_id),
        timestamp=row.timestamp,
        service=Service(row.service_name, row.service_version, row.service_language, row.service_language_version),
        user_id=row.user_id,
        environment=Environment(row.os, row.os_version, row.arch, row.ci, row.shell),
        event=Occurrence(row.event_type, Raw(row.event_data.encode()), row.event_category),
        metadata=Metadata(row.sdk_version, row.transmission_timestamp, row.batch_size, row.retry_count),
        session_id=row.session_id,
    )


_TIMES = {"timestamp", "transmission_timestamp", "received_at"}
_INTEGERS = {"batch_size", "retry_count"}
_OPTIONAL = {"service_language_version", "session_id", "os_version", "arch", "ci", "shell", "event_category"}


def _field(pyarrow: Any, name: str) -> Any:
    if name in _TIMES:
        kind = pyarrow.timestamp("us", tz="UTC")
    elif name in _INTEGERS:
        kind = pyarrow.int32()
    else:
        kind = pyarrow.bool_() if name == "ci" else pyarrow.string()
    return pyarrow.field(name, kind, nullable=name in _OPTIONAL)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
