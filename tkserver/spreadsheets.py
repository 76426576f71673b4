"""Cells of files that spreadsheets open."""

from __future__ import annotations

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def escape_formula(text: str) -> str:
    """Return a cell that a spreadsheet does not take for a formula, which could harm the reader."""
    return f"'{text}" if text.startswith(_FORMULA) else text
