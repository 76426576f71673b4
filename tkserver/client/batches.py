"""Events as bodies: encoded once, and put together into batches that the server takes. Pure."""

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
"""The longest body that a server takes by its default setting, in bytes."""

Sendable = Event | Mapping[str, Any] | bytes
"""An event: built, as a mapping in the shape of the contract, or as its JSON text."""

_METADATA_ROOM = 256
"""Bytes for the metadata of one event, and more than it needs."""


class _Peek(Struct):
    """Whether an event has metadata of its own."""

    metadata: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True)
class Batch:
    """Events that are sent together.

    :ivar texts: their JSON texts.
    :ivar complete: for each of them, whether it has metadata already: one that was sent before, and is sent again.
    """

    texts: Sequence[bytes]
    complete: Sequence[bool]

    def body(self, sdk_version: str, now: datetime, retry: int) -> bytes:
        """The body of a request, with metadata in those events that have none.

        :param retry: how often it was sent before.
        """
        metadata = msgspec.json.encode(Metadata(sdk_version, now, len(self.texts), retry))
        whole = (
            text if complete else b'%s,"metadata":%s}' % (text[:-1], metadata)
            for text, complete in zip(self.texts, self.complete, strict=True)
        )
        return b'{"events":[%s]}' % b",".join(whole)


def batches(events: Iterable[Sendable], *, max_events: int = MAX_EVENTS, max_bytes: int = MAX_BYTES) -> Iterator[Batch]:
    """Put events into as few batches as keep the limits, in their order. Holds one batch at a time.

    An event that is too long for any batch has one of its own: the server says what it thinks of it.

    :raise TypeError: when something is no event.
    :raise ValueError: when a text is no JSON object.
    """
    texts: list[bytes] = []
    complete: list[bool] = []
    size = 0
    for event in events:
        text, whole = _encode(event)
        length = len(text) + 1 + (0 if whole else _METADATA_ROOM)
        if texts and (len(texts) == max_events or size + length > max_bytes - _METADATA_ROOM):
            yield Batch(texts, complete)
            texts, complete, size = [], [], 0
        texts.append(text)
        complete.append(whole)
        size += length
    if texts:
        yield Batch(texts, complete)


def _encode(event: Sendable) -> tuple[bytes, bool]:
    """The JSON text of an event, and whether it has metadata."""
    if isinstance(event, Event):
        return msgspec.json.encode(event), False
    text = event.strip() if isinstance(event, bytes) else msgspec.json.encode(event)
    whole = msgspec.json.decode(text, type=_Peek).metadata is not msgspec.UNSET
    # An object with nothing in it cannot be added to, and is no event either way.
    return text, whole or text[1:-1].strip() == b""
