"""Messages from the aggregating process to the server, as lines of JSON. They contain nothing from events."""

from __future__ import annotations

import msgspec
from msgspec import Struct


class State(Struct, tag=True, frozen=True):
    """How far the aggregation has come, by whatever process.

    :ivar aggregates: true if this process aggregates; false if another one does.
    :ivar lag_events: about how many events are not aggregated yet.
    :ivar lag_seconds: how long the oldest of them has been waiting.
    """

    aggregates: bool
    lag_events: int
    lag_seconds: float


class Aggregated(Struct, tag=True, frozen=True):
    """A transaction has been committed.

    :ivar seconds: how long it took.
    """

    events: int
    seconds: float


class Progress(Struct, tag=True, frozen=True):
    """The progress of an aggregation that takes long.

    :ivar done: the number of events so far.
    :ivar remaining: about how many events are left; 0 at the end.
    """

    done: int
    remaining: int


class Rebuilding(Struct, tag=True, frozen=True):
    """All aggregates are computed again, because the definitions have changed."""


class Newer(Struct, tag=True, frozen=True):
    """A newer version of this program has computed the aggregates, so that this one must not change them."""


class Unavailable(Struct, tag=True, frozen=True):
    """The database is not available.

    :ivar reason: the text of a :exc:`~tkserver.storage.errors.StorageError`.
    """

    reason: str


class Crashed(Struct, tag=True, frozen=True):
    """The process ends because of an unexpected error.

    :ivar error: the type of the exception. Its text may contain data from clients.
    :ivar traceback: the frames.
    """

    error: str
    traceback: str


Message = State | Aggregated | Progress | Rebuilding | Newer | Unavailable | Crashed

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Message).decode
