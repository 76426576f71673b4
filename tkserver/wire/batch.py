"""Decoding of request bodies: content type, compression, JSON, and the validation of each event.

All functions whose cost depends on the length of the body are generators. They yield nothing, at intervals of a few
milliseconds of CPU time, so that the caller can do other work in between.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Generator, Sequence
from operator import attrgetter
from typing import TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import astuple

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
from tkserver.wire.event_validation import EMPTY, OTHER_TYPES, Violation, read_event, read_event_in_steps
from tkserver.wire.long_batch import texts_of_long_body
from tkserver.wire.surrogates import replace_lone_surrogates, restore_in_steps

MAX_EVENTS = 1000
"""Maximum number of events in a batch."""

T = TypeVar("T")

Steps = Generator[None, None, T]
Decompressor: TypeAlias = "zlib._Decompress"
"""A computation in steps. Its return value is the result."""

_TINY_EVENT = 32
"""Bytes. Shorter events are invalid, because a valid one has more than 300."""

_LONG_EVENT = 8192
"""Bytes. Longer events are read in steps."""

_STEP_BYTES = 32_768
_STEP_EVENT = 2048
"""Bytes that take as much time as an event, in addition to its own bytes."""
_STEP_OUTPUT = 262_144
"""Bytes of decompressed or decoded text, which take much less time than bytes of compressed data or of events."""

_STEP_MEMBERS = 256


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


_GZIP = zlib.MAX_WBITS | 16
_PADDING = re.compile(rb"\0*")
_FIRST_READ = 512
"""Bytes of a member that are read first. They are few, because data after the end of the member is copied."""


def _decompress(body: bytes, max_bytes: int) -> Steps[bytes]:
    """Decompress a gzip body (RFC 1952), which can consist of several members, with zero bytes between them.

    :raise InvalidEncoding: if it is not valid gzip.
    :raise PayloadTooLarge: if the result is longer than ``max_bytes``. Only one byte more is decompressed.
    """
    if not body:
        raise InvalidEncoding("the body is empty, which is not valid gzip")
    size = len(body)
    result = bytearray()
    position = members = 0
    while position < size:
        members += 1
        if not members % _STEP_MEMBERS:
            yield
        member = zlib.decompressobj(_GZIP)
        data = body[position : position + _FIRST_READ]
        position += len(data)
        _decompress_part(member, data, result, max_bytes)
        if not member.eof:
            position = yield from _decompress_rest(member, body, position, result, max_bytes)
        position -= len(member.unused_data)
        if body.startswith(b"\0", position):
            position = _end_of_padding(body, position)
    return bytes(result)


def _decompress_rest(member: Decompressor, body: bytes, position: int, result: bytearray, max_bytes: int) -> Steps[int]:
    """Decompress the rest of a member, append it to the result, and return the position up to which data was read."""
    read_size = _FIRST_READ
    while not member.eof:
        data = member.unconsumed_tail
        if not data:
            read_size = min(read_size * 2, _STEP_BYTES)
            data = body[position : position + read_size]
            position += len(data)
            if not data:
                raise InvalidEncoding("the gzip body is truncated")
        _decompress_part(member, data, result, max_bytes)
        yield
    return position


def _decompress_part(member: Decompressor, data: bytes, result: bytearray, max_bytes: int) -> None:
    """Decompress some data of a member, and append it to the result."""
    try:
        part = member.decompress(data, min(_STEP_OUTPUT, max_bytes + 1 - len(result)))
    except zlib.error:
        raise InvalidEncoding("the body is not valid gzip") from None
    if part:
        result += part
        if len(result) > max_bytes:
            raise PayloadTooLarge(f"the decompressed body is longer than {max_bytes} bytes: send fewer events at once")


def _end_of_padding(body: bytes, position: int) -> int:
    padding = _PADDING.match(body, position)
    return padding.end() if padding else position


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
    tiny = _indexes_of_tiny_events(texts)
    errors = _errors_of_tiny_events(tiny, texts) if tiny else []
    others: Sequence[int] = range(len(texts))
    if tiny:
        others = sorted(set(others).difference(tiny)) if len(tiny) < len(texts) else ()
    events: dict[int, Event] = {}
    handled = 0
    for index in others:
        text = texts[index]
        variant = None if variants is None else variants[index]
        if len(text) <= _LONG_EVENT:
            result = read_event(text, variant)
        else:
            result = yield from read_event_in_steps(text, variant)
        if isinstance(result, Violation):
            errors.append(EventError(index, result.event_id, result.code, result.message))
        else:
            events[index] = result
        handled += len(text) + _STEP_EVENT
        if handled >= _STEP_BYTES:
            handled = 0
            yield
    if tiny and others:
        errors.sort(key=_index)
    if variants is not None:
        texts = yield from _restore(texts, variants)
    return Batch(events, tuple(errors), texts)


def _indexes_of_tiny_events(texts: Texts) -> Sequence[int]:
    if max(map(len, texts)) <= _TINY_EVENT:
        return range(len(texts))
    return [index for index, text in enumerate(texts) if len(text) <= _TINY_EVENT]


def _errors_of_tiny_events(indexes: Sequence[int], texts: Texts) -> list[EventError]:
    """Return the errors of tiny events. Equal events are read once.

    A body can have one event for every two of its bytes. Therefore this function does little for each event.
    """
    keys = [texts[index] for index in indexes]
    errors = {key: _errors_of_type.get(key[:1]) or _errors_of(read_event(key)) for key in dict.fromkeys(keys)}
    return [errors[key][index] for key, index in zip(keys, indexes, strict=True)]


class _Errors:
    """The errors of equal events, by the indexes of these events."""

    def __init__(self, violation: Violation) -> None:
        self._violation = violation

    def __getitem__(self, index: int) -> EventError:
        violation = self._violation
        return EventError(index, violation.event_id, violation.code, violation.message)


def _errors_of(violation: Event | Violation) -> _Errors | tuple[EventError, ...]:
    assert isinstance(violation, Violation), "a tiny event is invalid"
    return _errors_of_empty_events if violation is EMPTY else _Errors(violation)


def _errors_of_all(violation: Violation) -> tuple[EventError, ...]:
    """Return the errors for all indexes, so that they are created only once."""
    errors = _Errors(violation)
    return tuple([errors[index] for index in range(MAX_EVENTS)])


_errors_of_empty_events = _errors_of_all(EMPTY)
_errors_of_type = {start: _errors_of_all(violation) for start, violation in OTHER_TYPES.items()}
_index = attrgetter("index")


def _restore(texts: Texts, variants: Texts) -> Steps[Texts]:
    """Return the original texts of events. All are restored at once, because one by one is slow."""
    first = b"\0".join(texts)
    yield
    second = b"\0".join(variants)
    yield
    restored = yield from restore_in_steps(first, second)
    return restored.split(b"\0")


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
"""JSON texts. Tiny ones are bytes, so that they can be compared fast."""


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
        raise BatchSizeMismatch(f"X-Batch-Size is {declared[:20]}, but the batch has {size} event{'s' * (size != 1)}")


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

_LONG_BODY = 131_072
"""Bytes. Longer bodies are decoded in steps."""

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
        if len(body) > _LONG_BODY:
            texts = yield from texts_of_long_body(body, MAX_EVENTS)
            if texts is not None:
                return _with_tiny_bytes(texts)
        # The array is decoded in a second pass, because the body can contain many of them with the same key.
        array = _envelope_decoder.decode(body).events
        if len(memoryview(array)) <= _LONG_ARRAY:
            return _to_bytes(_list_decoder.decode(array))
        yield
        events = astuple(_limited_decoder.decode(array))
        yield
        return _with_tiny_bytes([event for event in events if event is not UNSET])
    except msgspec.ValidationError as error:
        if str(error).startswith(_TOO_MANY):
            raise BatchTooLarge(f"the batch has more than {MAX_EVENTS} events: send several batches") from None
        raise InvalidJson(f"the body must be a JSON object with an events array: {error}") from None
    except RecursionError:
        raise _nested_too_deeply() from None


def _with_tiny_bytes(texts: list[bytes | Raw]) -> Texts:
    return [text if len(text) > _TINY_EVENT else bytes(text) for text in texts]


def _to_bytes(texts: list[Raw]) -> list[bytes]:
    """Convert JSON texts, which contain no zero byte. This is faster than one by one."""
    return b"\0".join(texts).split(b"\0") if texts else []


def _nested_too_deeply() -> InvalidJson:
    return InvalidJson("the body is nested too deeply")
