"""What a command is waiting for, shown on the terminal if it takes longer than a second."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

DELAY = 1.0
"""Seconds after which a command shows what it is waiting for."""

_notices: list[_Notice] = []
"""The reasons to wait, of which the last one is the current one."""


class _Notice:
    """A line that is printed to standard error after a while, unless it is cancelled."""

    def __init__(self, reason: str) -> None:
        self._reason = reason
        self._timer: threading.Timer | None = None

    def start(self) -> None:
        if sys.stderr is not None and sys.stderr.isatty():
            self._timer = threading.Timer(DELAY, self._print)
            self._timer.daemon = True
            self._timer.start()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _print(self) -> None:
        click.echo(f"Waiting for {self._reason} …", err=True)


@contextmanager
def waiting_for(reason: str) -> Iterator[None]:
    """Show the reason on the terminal if the block takes longer than :data:`DELAY`."""
    with not_waiting():
        notice = _Notice(reason)
        _notices.append(notice)
        notice.start()
        try:
            yield
        finally:
            notice.cancel()
            _notices.pop()


@contextmanager
def not_waiting() -> Iterator[None]:
    """Show nothing: the block shows its own progress, or the command waits for the user."""
    outer = _notices[-1] if _notices else None
    if outer is not None:
        outer.cancel()
    try:
        yield
    finally:
        if outer is not None:
            outer.start()
