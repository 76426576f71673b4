"""Decoding of request bodies: content type, compression, JSON, and the number of events."""

from __future__ import annotations

import gzip
import zlib
from io import BytesIO
from itertools import islice

import msgspec
from msgspec import Raw, Struct

from tkserver.wire.api_errors import (
    ApiError,
    BatchSizeMismatch,
    BatchTooLarge,
    EmptyBatch,
    EventError,
    InvalidEncoding,
    InvalidJson,
    PayloadTooLarge,
    UnsupportedEncoding,
    UnsupportedMediaType,
)
from tkserver.wire.event import Event
from tkserver.wire.event_validation import InvalidEvent, event_id_of, read_event
from tkserver.wire.scanner import Scanner

MAX_EVENTS = 1000
"""Maximum number of events in a batch."""


class Batch(Struct, frozen=True):
    """A decoded body.

    :ivar events: the valid events, by their index in the batch.
    :ivar errors: one for each invalid event, ordered by index.
    """

    events: dict[int, Event]
    errors: tuple[EventError, ...]

    @property
    def size(self) -> int:
        """Number of events, including invalid ones."""
        return len(self.events) + len(self.errors)


def decode_body(body: bytes, *, content_type: str | None, content_encoding: str | None, max_bytes: int) -> bytes:
    """Check the content type of a body, and return the body without compression.

    :param body: as received.
    :param content_type: the ``Content-Type`` header, or ``None`` if it was not sent.
    :param content_encoding: the ``Content-Encoding`` header, or ``None`` if it was not sent.
    :param max_bytes: maximum size after decompression.
    :raise ApiError: if the content type or the encoding is not supported, or the gzip data is invalid or too large.
    """
    if (content_type or "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("send Content-Type: application/json")
    encoding = (content_encoding or "identity").strip().lower()
    if encoding == "gzip":
        return _decompress(body, max_bytes)
    if encoding != "identity":
        raise UnsupportedEncoding("unsupported Content-Encoding: only gzip is supported")
    return body


def _decompress(body: bytes, max_bytes: int) -> bytes:
    """Decompress a gzip body (RFC 1952), which can consist of several members.

    :raise InvalidEncoding: if it is not valid gzip.
    :raise PayloadTooLarge: if the result is longer than ``max_bytes``. Only one byte more is decompressed.
    """
    try:
        text = gzip.GzipFile(fileobj=BytesIO(body)).read(max_bytes + 1)
    except EOFError:
        raise InvalidEncoding("the gzip body is truncated") from None
    except (OSError, zlib.error):
        raise InvalidEncoding("the body is not valid gzip") from None
    if not body:
        raise InvalidEncoding("the body is empty, which is not valid gzip")
    if len(text) > max_bytes:
        raise PayloadTooLarge(f"the decompressed body is longer than {max_bytes} bytes: send fewer events at once")
    return text


def read_batch(body: bytes, *, declared_size: str | None = None) -> Batch:
    """Parse a body, and validate each event separately.

    :param body: JSON, not compressed.
    :param declared_size: the ``X-Batch-Size`` header, or ``None`` if it was not sent.
    :raise ApiError: if the body as a whole is invalid.
    """
    events: dict[int, Event] = {}
    errors: list[EventError] = []
    for index, raw in enumerate(_raw_events(body, declared_size)):
        try:
            events[index] = read_event(raw)
        except InvalidEvent as error:
            errors.append(EventError(index, event_id_of(raw), error.code, error.message))
    return Batch(events, tuple(errors))


def count_events(body: bytes) -> int:
    """Return the number of events in a body, without validating them.

    :param body: JSON, not compressed.
    :return: 0 if :func:`read_batch` would reject the body.
    """
    try:
        return len(_raw_events(body, None))
    except ApiError:
        return 0


def _raw_events(body: bytes, declared_size: str | None) -> list[bytes] | list[Raw]:
    """Return the events as JSON texts.

    :raise ApiError: if the body as a whole is invalid.
    """
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidEncoding(f"the body is not valid UTF-8 at byte {error.start}") from None
    raw_events = _split(body)
    _check_size(len(raw_events), declared_size)
    return raw_events


def _check_size(size: int, declared: str | None) -> None:
    if size == 0:
        raise EmptyBatch(f"the batch has no events: send 1 to {MAX_EVENTS}")
    if size > MAX_EVENTS:
        raise BatchTooLarge(f"the batch has more than {MAX_EVENTS} events: send several batches")
    if declared is not None and declared.strip() != str(size):
        raise BatchSizeMismatch(f"X-Batch-Size is {declared[:20]}, but the batch has {size} events")


# --- splitting of a body into events


class _Envelope(Struct):
    events: list[Raw]


_envelope_decoder = msgspec.json.Decoder(_Envelope)


def _split(body: bytes) -> list[bytes] | list[Raw]:
    """Return the events as JSON texts.

    :raise InvalidJson: if the body is not a JSON object with an ``events`` array.
    """
    try:
        return _envelope_decoder.decode(body).events
    except msgspec.ValidationError as error:
        raise InvalidJson(f"the body must be a JSON object with an events array: {error}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        try:
            return _scan(body)
        except ValueError:
            raise InvalidJson(f"the body is not valid JSON: {error}") from None


def _scan(body: bytes) -> list[bytes]:
    """Return the events of a body that the decoder rejects.

    Stop after ``MAX_EVENTS`` + 1 events.

    :raise ValueError: if the body is not a JSON object with an ``events`` array.
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
