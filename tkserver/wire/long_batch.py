"""The texts of the events in a long body, in steps.

The decoder needs up to 10 ms for each megabyte, and cannot be interrupted. Therefore this module lets it decode a few
events at a time. Bodies of an unusual form are left to the caller: those with an event that is longer than any valid
one, with more events than a batch can have, or with long or repeated other members.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass, field

import msgspec
from msgspec import Raw, Struct

from tkserver.wire.event import MAX_EVENT_BYTES

_WINDOW = MAX_EVENT_BYTES + 4096
"""Bytes that are searched for the end of an event."""

_GROUP = 32_768
"""Bytes of events that are decoded together."""

_MAX_BEFORE = 4096
_MAX_AFTER = 65_536
"""Bytes of other members before and after the events."""

_STEP_BYTES = 65_536

_LONGEST_TOKEN = 16
"""Bytes. Escapes and literals are shorter."""

_START = re.compile(rb'"events"[ \t\n\r]{0,64}:[ \t\n\r]{0,64}\[')
_WHITE_SPACE = b" \t\n\r"
_GROUP_ENDS = (b"},{", b"}, {")

# msgspec does not document its messages. If they change, all bodies have an unusual form.
_TRAILING = re.compile(r"JSON is malformed: trailing characters \(byte ([0-9]+)\)")
_POSITION = re.compile(r"\(byte ([0-9]+)\)$")


class _Envelope(Struct):
    events: Raw


_envelope_decoder = msgspec.json.Decoder(_Envelope)
_list_decoder = msgspec.json.Decoder(list[Raw])
_value_decoder = msgspec.json.Decoder(Raw)


class _UnusualForm(Exception):
    """The body is not handled by this module. It may be valid or not."""


@dataclass
class _Reader:
    """Reads the elements of an array in a text one after another.

    :ivar position: of the next element.
    :ivar end: the position of the closing bracket, as soon as it is known.
    :ivar has_groups: true unless a bracket that seemed to end an event did not.
    """

    body: bytes
    position: int
    texts: list[bytes | Raw] = field(default_factory=list)
    end: int | None = None
    has_groups: bool = True

    def read_group(self) -> None:
        """Read all events that end within the next bytes, if that can be found out fast."""
        ends = [self.body.rfind(text, self.position, self.position + _GROUP) for text in _GROUP_ENDS]
        end = max(ends) + 1
        if not end:
            return
        array = b"".join((b"[", memoryview(self.body)[self.position : end], b"]"))
        try:
            self.texts += _list_decoder.decode(array)
        except msgspec.DecodeError:  # the bracket was inside an event, or the body is invalid
            self.has_groups = False
            return
        self.position = self.body.index(b",", end) + 1

    def read_event(self) -> None:
        """Read the next event.

        :raise _UnusualForm: if it is too long.
        :raise msgspec.DecodeError: if it is not valid JSON, or contains a lone surrogate.
        """
        start = self.position
        window = memoryview(self.body)[start : start + _WINDOW]
        try:
            _value_decoder.decode(window)
        except msgspec.DecodeError as error:
            match = _TRAILING.fullmatch(str(error))
            if match is None:
                raise self._moved(error, len(window)) from None
            after = start + int(match[1])
        else:
            raise _UnusualForm
        delimiter = self.body[after - 1 : after]
        if delimiter not in (b",", b"]"):
            raise msgspec.DecodeError(f"JSON is malformed: expected ',' or ']' (byte {after - 1})")
        self.texts.append(self.body[start : after - 1].strip(_WHITE_SPACE))
        self.position = after
        if delimiter == b"]":
            self.end = after - 1

    def _moved(self, error: msgspec.DecodeError, length: int) -> Exception:
        """Return the error of the next event with the position in the body.

        An error at the end of the window can be wrong, because the end is within the event. An error in the first event
        can mean that there are none.

        :param length: of the window.
        """
        match = _POSITION.search(str(error))
        is_cut = self.position + length < len(self.body)
        if not self.texts or (is_cut and (match is None or int(match[1]) > length - _LONGEST_TOKEN)):
            return _UnusualForm()
        return error if match is None else _at_position(error, match, self.position)


def _at_position(error: msgspec.DecodeError, match: re.Match[str], offset: int) -> msgspec.DecodeError:
    """Return the same error at a later position.

    :param match: of the position in the message.
    """
    return msgspec.DecodeError(f"{str(error)[: match.start()]}(byte {int(match[1]) + offset})")


def texts_of_long_body(body: bytes, max_events: int) -> Generator[None, None, list[bytes | Raw] | None]:
    """Return the JSON texts of the events, or ``None`` if the body has an unusual form.

    This is a generator, so that a long body can be read in steps. It yields nothing.

    :param body: UTF-8.
    :raise msgspec.DecodeError: if the body is not valid JSON, or contains a lone surrogate.
    :raise RecursionError: if it is nested too deeply.
    """
    start = _START.search(body, 0, _MAX_BEFORE)
    if start is None:
        return None
    reader = _Reader(body, start.end())
    try:
        yield from _read_all(reader, max_events)
        _check_other_members(body, start.start(), start.end(), reader.end or len(body))
    except _UnusualForm:
        return None
    return reader.texts


def _read_all(reader: _Reader, max_events: int) -> Generator[None, None, None]:
    next_step = reader.position + _STEP_BYTES
    while reader.end is None:
        if reader.has_groups:
            reader.read_group()
        reader.read_event()
        if len(reader.texts) > max_events:
            raise _UnusualForm
        if reader.position > next_step:
            next_step = reader.position + _STEP_BYTES
            yield


def _check_other_members(body: bytes, before: int, start: int, end: int) -> None:
    """Check that the rest of the body is valid.

    :param before: the end of the members before the events.
    :param start: the beginning of the events. The same for ``end``.
    """
    rest = body[:before] + body[end:]
    if len(rest) > _MAX_AFTER or b"events" in rest or b"\\" in rest:
        raise _UnusualForm
    try:
        _envelope_decoder.decode(body[:start] + body[end:])
    except msgspec.ValidationError:
        raise _UnusualForm from None
    except msgspec.DecodeError as error:
        match = _POSITION.search(str(error))
        if match is None or int(match[1]) < start:
            raise
        raise _at_position(error, match, end - start) from None
