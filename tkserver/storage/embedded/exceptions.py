"""The exception of the embedded PostgreSQL."""

from __future__ import annotations


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot run. The text says what to do."""

    holds_no_values = True
