"""Decoding of request bodies: content type, compression, JSON, and the validation of each event.

All functions whose cost depends on the length of the body are generators. They yield nothing, at intervals of a few
milliseconds of CPU time, so that the caller can do other work in between.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Generator, Sequence
from typing import TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

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
from tkserver.wire.event_validation import Violation, read_event
from tkserver.wire.surrogates import replace_lone_surrogates, restore

MAX_EVENTS = 1000
"""Maximum number of events in a batch."""

T = TypeVar("T")

Steps = Generator[None, None, T]
"""A computation in steps. Its return value is the result."""

_TINY_EVENT = 8
"""Bytes. Shorter events are invalid, and a body can contain hundreds of equal ones."""

_STEP_BYTES = 65_536
_STEP_EVENTS = 16
_STEP_MEMBERS = 256
_STEP_OUTPUT = 1 << 20
"""Bytes of decompressed or decoded text, which take much less time than bytes of compressed data or of events."""


class Batch(Struct, frozen=True):
    """A decoded body.

    :ivar events: the valid events, by their index in the batch.
    :ivar errors: one for each invalid event, ordered by index.
    :ivar texts: the JSON texts of all events as received, by their index. They keep the body in memory.
    """

    events: dict[int, Event]
    errors: tuple[EventError, ...]
    texts: Sequence[bytes | Raw] = ()

    @property
    def size(self) -> int:
        """Number of events, including invalid ones."""
        return len(self.events) + len(self.errors)


def run_steps(steps: Steps[T]) -> T:
    """Run a computation without interruption, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


# --- content type and compression


def decode_body(body: bytes, *, content_type: str | None, content_encoding: str | None, max_bytes: int) -> Steps[bytes]:
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
        return (yield from _decompress(body, max_bytes))
    if encoding != "identity":
        raise UnsupportedEncoding("unsupported Content-Encoding: only gzip is supported")
    return body


_PADDING = re.compile(rb"\0*")


def _decompress(body: bytes, max_bytes: int) -> Steps[bytes]:
    """Decompress a gzip body (RFC 1952), which can consist of several members, with zero bytes between them.

    :raise InvalidEncoding: if it is not valid gzip.
    :raise PayloadTooLarge: if the result is longer than ``max_bytes``. Only one byte more is decompressed.
    """
    if not body:
        raise InvalidEncoding("the body is empty, which is not valid gzip")
    result = bytearray()
    position = members = progress = 0
    while position < len(body):
        members += 1
        if members % _STEP_MEMBERS == 0:
            yield
        member = _Member(body, position)
        while not member.complete:
            result += member.read(min(_STEP_OUTPUT, max_bytes + 1 - len(result)))
            if len(result) > max_bytes:
                raise PayloadTooLarge(
                    f"the decompressed body is longer than {max_bytes} bytes: send fewer events at once"
                )
            if member.position / _STEP_BYTES + len(result) / _STEP_OUTPUT >= progress + 1:
                progress += 1
                yield
        padding = _PADDING.match(body, member.end)
        position = padding.end() if padding else member.end
    return bytes(result)


class _Member:
    """A member of a gzip body.

    :param position: its start.
    :ivar position: the end of the data that was read. It can be after the end of the member.
    """

    _FIRST_READ = 512
    _MAX_READ = _STEP_BYTES

    def __init__(self, body: bytes, position: int) -> None:
        self._body = body
        self.position = position
        self._read_size = self._FIRST_READ  # small, because data after the end of the member is copied
        self._decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        self._input = b""

    @property
    def complete(self) -> bool:
        return self._decompressor.eof

    @property
    def end(self) -> int:
        """The position after the member, once it is complete."""
        return self.position - len(self._decompressor.unused_data)

    def read(self, max_length: int) -> bytes:
        """Decompress the next part of the member.

        :param max_length: the maximum length of the part; at least 1.
        :raise InvalidEncoding: if it is invalid or truncated.
        """
        if not self._input:
            self._input = self._body[self.position : self.position + self._read_size]
            self.position += len(self._input)
            self._read_size = min(self._read_size * 2, self._MAX_READ)
            if not self._input:
                raise InvalidEncoding("the gzip body is truncated")
        try:
            part = self._decompressor.decompress(self._input, max_length)
        except zlib.error:
            raise InvalidEncoding("the body is not valid gzip") from None
        self._input = self._decompressor.unconsumed_tail
        return part


# --- JSON


def read_batch(body: bytes, *, declared_size: str | None = None) -> Steps[Batch]:
    """Decode a body, and validate each event separately.

    :param body: JSON, not compressed.
    :param declared_size: the ``X-Batch-Size`` header, or ``None`` if it was not sent.
    :raise ApiError: if the body as a whole is rejected.
    """
    texts, variants = yield from _texts_of_events(body, declared_size)
    try:
        return (yield from _validate(texts, variants))
    except RecursionError:
        raise _nested_too_deeply() from None


def _validate(texts: Texts, variants: Texts | None) -> Steps[Batch]:
    """Validate events.

    :param variants: see :func:`read_event`.
    :raise RecursionError: if an event is nested too deeply.
    """
    events: dict[int, Event] = {}
    errors: list[EventError] = []
    tiny: dict[bytes, Event | Violation] = {}
    originals: list[bytes | Raw] = []
    handled = 0
    for index, text in enumerate(texts):
        size = len(text)
        if variants is not None:
            variant = variants[index]
            result = read_event(text, variant)
            originals.append(restore(bytes(text), bytes(variant)))
        elif size > _TINY_EVENT:
            result = read_event(text)
        elif (result := tiny.get(key := bytes(text))) is None:  # type: ignore[assignment]
            result = tiny[key] = read_event(key)
        if isinstance(result, Violation):
            errors.append(EventError(index, result.event_id, result.code, result.message))
        else:
            events[index] = result
        handled += size
        if handled >= _STEP_BYTES or index % _STEP_EVENTS == _STEP_EVENTS - 1:
            handled = 0
            yield
    return Batch(events, tuple(errors), texts if variants is None else originals)


def count_events(body: bytes) -> Steps[int]:
    """Return the number of events in a body without validating them.

    :param body: JSON, not compressed.
    :return: 0 if :func:`read_batch` would reject the body.
    """
    try:
        texts, _ = yield from _texts_of_events(body, None)
    except ApiError:
        return 0
    return len(texts)


Texts = Sequence["bytes | Raw"]


def _texts_of_events(body: bytes, declared_size: str | None) -> Steps[tuple[Texts, Texts | None]]:
    """Return the JSON texts of the events, and variants of them if the body contains lone surrogates.

    :raise ApiError: if the body as a whole is rejected.
    """
    yield from _check_utf8(body)
    texts, variants = yield from _split(body)
    _check_size(len(texts), declared_size)
    return texts, variants


def _check_utf8(body: bytes) -> Steps[None]:
    if body.isascii():
        return
    position = 0
    while position < len(body):
        end = position + _STEP_OUTPUT
        try:
            _, length = codecs.utf_8_decode(body[position:end], "strict", end >= len(body))
        except UnicodeDecodeError as error:
            raise InvalidEncoding(f"the body is not valid UTF-8 at byte {position + error.start}") from None
        position += length
        if position < len(body):
            yield


def _check_size(size: int, declared: str | None) -> None:
    if size == 0:
        raise EmptyBatch(f"the batch has no events: send 1 to {MAX_EVENTS}")
    if size > MAX_EVENTS:
        raise BatchTooLarge(f"the batch has more than {MAX_EVENTS} events: send several batches")
    if declared is not None and declared.strip() != str(size):
        raise BatchSizeMismatch(f"X-Batch-Size is {declared[:20]}, but the batch has {size} events")


def _split(body: bytes) -> Steps[tuple[Texts, Texts | None]]:
    """Return the JSON texts of the events, and variants of them if the body contains lone surrogates.

    :raise InvalidJson: if the body is not a JSON object with an ``events`` array, or is nested too deeply.
    """
    try:
        return (yield from _decode(body)), None
    except msgspec.DecodeError as error:
        problem = str(error)
    variants = yield from replace_lone_surrogates(body)
    if variants is None:
        raise InvalidJson(f"the body is not valid JSON: {problem}")
    try:
        first = yield from _decode(variants[0])
        return first, (yield from _decode(variants[1]))
    except msgspec.DecodeError as error:
        raise InvalidJson(f"the body is not valid JSON: {error}") from None


class _Envelope(Struct):
    events: Raw


_envelope_decoder = msgspec.json.Decoder(_Envelope)

_LONG_ARRAY = 16_384
"""Bytes. A list of all elements of a longer array could take long to build: it can have millions of them."""

_list_decoder = msgspec.json.Decoder(list[Raw])

# An array that is decoded into this type is not decoded further than one event beyond the limit. For short arrays, the
# type is slower than a list.
_Events = msgspec.defstruct(
    "_Events",
    [(f"event_{index}", Raw | UnsetType, UNSET) for index in range(MAX_EVENTS + 1)],
    array_like=True,
    forbid_unknown_fields=True,
)
_limited_decoder = msgspec.json.Decoder(_Events)
_TOO_MANY = "Expected `array` of at most length"


def _decode(body: bytes) -> Steps[Texts]:
    """Return the JSON texts of the events.

    :raise InvalidJson: if the body is valid JSON, but not an object with an ``events`` array, or nested too deeply.
    :raise BatchTooLarge: if a long body has too many events.
    :raise msgspec.DecodeError: if the body is not valid JSON, or contains a lone surrogate.
    """
    try:
        # The array is decoded in a second pass, because the body can contain many of them with the same key.
        array = _envelope_decoder.decode(body).events
        if len(memoryview(array)) <= _LONG_ARRAY:
            return _list_decoder.decode(array)
        yield
        events = msgspec.structs.astuple(_limited_decoder.decode(array))
        yield
        return [event for event in events if event is not UNSET]
    except msgspec.ValidationError as error:
        if str(error).startswith(_TOO_MANY):
            raise BatchTooLarge(f"the batch has more than {MAX_EVENTS} events: send several batches") from None
        raise InvalidJson(f"the body must be a JSON object with an events array: {error}") from None
    except RecursionError:
        raise _nested_too_deeply() from None


def _nested_too_deeply() -> InvalidJson:
    return InvalidJson("the body is nested too deeply")
