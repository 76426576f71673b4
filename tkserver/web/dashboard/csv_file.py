"""Lists of a panel as CSV. Pure logic."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import msgspec

from tkserver.spreadsheets import escape_formula


def csv_of(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return rows as CSV in UTF-8, with the names of the columns in the first line. Lists and objects become JSON."""
    output = io.StringIO()
    writer = csv.writer(output)
    if rows:
        writer.writerow(rows[0])
        writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return output.getvalue().encode()


def _cell(value: object) -> object:
    if isinstance(value, (list, dict)):
        return msgspec.json.encode(value).decode()
    return escape_formula(value) if isinstance(value, str) else value
