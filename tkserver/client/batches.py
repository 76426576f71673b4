"""Encoding of events, and their division into batches that fit the limits of the server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from tkserver.client.events import Event
from tkserver.wire.batch import MAX_EVENTS
from tkserver.wire.event import Metadata

MAX_BYTES = 5_242_880
"""Maximum size of a body that the server accepts with its default settings."""

Sendable = Event | Mapping[str, Any] | bytes
"""An event: from an :class:`~tkserver.client.events.EventBuilder`, as a mapping with its JSON keys, or as JSON text."""

_METADATA_BYTES = 256
"""Upper bound for the size of the metadata of an event."""


class _OptionalMetadata(Struct):
    """Used to find out if an event has metadata."""

    metadata: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True)
class Batch:
    """Events that are sent in one request.

    :ivar texts: the events as JSON.
    :ivar complete: for each event, true if it already has metadata, for example because it was sent before.
    """

    texts: Sequence[bytes]
    complete: Sequence[bool]

    def body(self, sdk_version: str, now: datetime, retry: int) -> bytes:
        """Return the body of a request. Events without metadata get metadata.

        :param now: the time of the transmission.
        :param retry: the number of earlier attempts.
        """
        metadata = msgspec.json.encode(Metadata(sdk_version, now, len(self.texts), retry))
        events = (
            text if complete else b'%s,"metadata":%s}' % (text[:-1], metadata)
            for text, complete in zip(self.texts, self.complete, strict=True)
        )
        return b'{"events":[%s]}' % b",".join(events)


def batches(events: Iterable[Sendable], *, max_events: int = MAX_EVENTS, max_bytes: int = MAX_BYTES) -> Iterator[Batch]:
    """Divide events into batches, in their order. Only one batch is in memory at a time.

    An event that is too long for a batch gets a batch of its own, so that the server reports the error.

    :raise TypeError: if an event cannot be encoded as JSON.
    :raise ValueError: if a text is not a JSON object.
    """
    texts: list[bytes] = []
    complete: list[bool] = []
    size = 0
    for event in events:
        text, has_metadata = _encode(event)
        length = len(text) + 1 + (0 if has_metadata else _METADATA_BYTES)
        if texts and (len(texts) == max_events or size + length > max_bytes - _METADATA_BYTES):
            yield Batch(texts, complete)
            texts, complete, size = [], [], 0
        texts.append(text)
        complete.append(has_metadata)
        size += length
    if texts:
        yield Batch(texts, complete)


def _encode(event: Sendable) -> tuple[bytes, bool]:
    """Return the JSON text of an event, and true if it must be sent without changes."""
    if isinstance(event, Event):
        return msgspec.json.encode(event), False
    text = event.strip() if isinstance(event, bytes) else msgspec.json.encode(event)
    has_metadata = msgspec.json.decode(text, type=_OptionalMetadata).metadata is not msgspec.UNSET
    # Metadata cannot be appended to an empty object. The server rejects it in any case.
    return text, has_metadata or text[1:-1].strip() == b""
