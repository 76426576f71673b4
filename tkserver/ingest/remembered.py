"""What is remembered of the database, for as long as its changes are heard of."""

from __future__ import annotations

from typing import Protocol


class Listener(Protocol):
    """Knows whether changes would be heard of."""

    listening: bool


class Remembered:
    """Remembers nothing itself: says whether others may, and counts the changes that they have to heed.

    What was asked for in one generation and answered in a later one may be outdated.
    """

    def __init__(self) -> None:
        self._generation = 0
        self._listener: Listener | None = None

    def attach(self, listener: Listener) -> None:
        """Remember things from now on, while this listener hears of changes."""
        self._listener = listener

    def forget(self) -> None:
        """Something may have changed."""
        self._generation += 1

    @property
    def _listening(self) -> bool:
        return self._listener is not None and self._listener.listening
