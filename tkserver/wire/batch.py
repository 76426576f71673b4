"""A body, from the bytes that came over the wire to its events and refusals."""

from __future__ import annotations

from itertools import islice

import msgspec
from msgspec import Raw, Struct

from tkserver.wire.event import Event, InvalidEvent, event_id_of, read_event
from tkserver.wire.refusal import (
    BatchSizeMismatch,
    BatchTooLarge,
    EmptyBatch,
    EventRefusal,
    InvalidEncoding,
    InvalidJson,
    Refusal,
)
from tkserver.wire.scanner import Scanner

MAX_EVENTS = 1000
"""The most events that one batch may hold."""


class Batch(Struct, frozen=True):
    """The events of a body by their place in it, and the refusals of those that break a rule."""

    events: dict[int, Event]
    refusals: tuple[EventRefusal, ...]


def read_batch(body: bytes, *, declared_size: str | None = None) -> Batch:
    """Decode a body and check each of its events by itself.

    :param body: JSON, no longer compressed.
    :param declared_size: the ``X-Batch-Size`` header, where it was sent.
    :raise Refusal: when the body as a whole cannot be taken.
    """
    raw_events = _raw_events(body, declared_size)
    events: dict[int, Event] = {}
    refusals: list[EventRefusal] = []
    for index, raw in enumerate(raw_events):
        try:
            events[index] = read_event(raw)
        except InvalidEvent as error:
            refusals.append(EventRefusal(index, event_id_of(raw), error.code, error.message))
    return Batch(events, tuple(refusals))


def count_events(body: bytes) -> int:
    """How many events a body has, none of which is looked at; 0 for one that :func:`read_batch` would not take.

    :param body: JSON, no longer compressed.
    """
    try:
        return len(_raw_events(body, None))
    except Refusal:
        return 0


def _raw_events(body: bytes, declared_size: str | None) -> list[bytes] | list[Raw]:
    """The JSON texts of a body's events, not looked at.

    :raise Refusal: when the body as a whole cannot be taken.
    """
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidEncoding(f"the body is not UTF-8: byte {error.start} does not fit") from None
    raw_events = _split(body)
    _check_size(len(raw_events), declared_size)
    return raw_events


def _check_size(size: int, declared: str | None) -> None:
    if size == 0:
        raise EmptyBatch("the batch has no events: send 1 to 1000")
    if size > MAX_EVENTS:
        raise BatchTooLarge(f"the batch has more than {MAX_EVENTS} events: send it in parts")
    if declared is not None and declared.strip() != str(size):
        raise BatchSizeMismatch(f"X-Batch-Size says {declared[:20]} but the batch has {size}")


# --- splitting a body into its events


class _Envelope(Struct):
    events: list[Raw]


_envelope_decoder = msgspec.json.Decoder(_Envelope)


def _split(body: bytes) -> list[bytes] | list[Raw]:
    """The JSON texts of a body's events.

    :raise InvalidJson: when the body is not a JSON object with an ``events`` array.
    """
    try:
        return _envelope_decoder.decode(body).events
    except msgspec.ValidationError as error:
        raise InvalidJson(f"the body must be a JSON object with an events array: {error}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        try:
            return _scan(body)
        except ValueError:
            raise InvalidJson(f"the body is not JSON: {error}") from None


def _scan(body: bytes) -> list[bytes]:
    """What :func:`_split` does, for a body that the decoder did not take; stops where there are too many events.

    :raise ValueError: when it is not what it should be.
    """
    scanner = Scanner(body.decode())
    events: list[bytes] | None = None
    for key, (start, _) in scanner.members():
        if key == "events":
            spans = islice(scanner.elements(start), MAX_EVENTS + 1)
            events = [scanner.text[first:end].encode() for first, end in spans]
    if events is None:
        raise ValueError("no events")
    return events
