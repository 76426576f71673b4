"""Lists of panels as CSV."""

from __future__ import annotations

import csv
import io

from tkserver.web.dashboard.csv_file import csv_of
from tkserver.web.dashboard.views import tables_of


def test_columns_and_values() -> None:
    """The first line has the names of the columns; lists and objects become JSON."""
    text = csv_of(
        [{"day": "2026-01-01", "users": {"1.0": 3}, "rate": None}, {"day": 'x,"y"', "users": [1], "rate": -1.5}]
    )
    assert list(csv.reader(io.StringIO(text.decode()))) == [
        ["day", "users", "rate"],
        ["2026-01-01", '{"1.0":3}', ""],
        ['x,"y"', "[1]", "-1.5"],
    ]
    assert csv_of([]) == b""


def test_formulas_are_neutralized() -> None:
    """A text that a spreadsheet would take for a formula is marked as text; a negative number is not."""
    rows = [{"name": f"{start}1+1", "number": -1} for start in "=+-@\t\r"]
    cells = list(csv.reader(io.StringIO(csv_of(rows).decode(), newline="")))[1:]
    assert cells == [[f"'{start}1+1", "-1"] for start in "=+-@\t\r"]


def test_tables_of_a_panel() -> None:
    """Only lists of objects are tables."""
    assert tables_of({"items": [{"a": 1}], "flags": [], "totals": {}, "names": ["a"], "rows": 3}) == {
        "items": [{"a": 1}],
        "flags": [],
    }
