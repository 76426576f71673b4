"""The chunked transfer coding of request bodies (RFC 9112, section 7.1).

Twisted's decoder needs microseconds for each chunk, so that a body in chunks of one byte costs hundreds of times as
much as the same body in one piece. This decoder reads *runs* of equal small chunks with operations on whole buffers.
"""

from __future__ import annotations

import re
from functools import lru_cache

MAX_LINE = 512
"""Bytes of a line with the size of a chunk and its extensions."""

MAX_TRAILERS = 8192
"""Bytes of all trailers together."""

MAX_OVERHEAD = 16_384
"""Bytes of extensions in a body, beyond what its chunks allow: 16 for each chunk, and two for each byte of content."""

MAX_RUN_SIZE = 256
"""The size of the largest chunks that are read in runs. Larger ones cost little."""

MAX_RUN_DIGITS = 4
"""The length of the longest size line in a run."""

EQUAL_CHUNKS = 8
"""The number of equal chunks in succession after which a run is expected. It doubles with each wrong expectation."""

FIRST_RUN = 16
"""The number of chunks that are first read at once. It doubles as long as the chunks are equal."""

MAX_RUN_BYTES = 65_536
"""Bytes that are read at once, with the size lines."""

_CRLF = b"\r\n"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_START_OF_SIZE_LINE = re.compile(rb"(?:[0-9A-Fa-f]{1,16}(?:;[\t\x20-\x7e\x80-\xff]*)?\r?)?")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")

_USUAL_SIZES = {b"%x" % size: size for size in range(1, 4096)}

_WRONG_SIZE = "a chunk is longer than its size"
_NOT_A_SIZE = "the size of a chunk is not a hexadecimal number of at most 16 digits"
_LONG_TRAILERS = "the trailers are too long"


class MalformedChunks(ValueError):
    """A body is not in the chunked transfer coding, or its extensions or trailers are too long."""


class ChunkDecoder:
    """Decodes one body.

    :ivar rest: the bytes after the body; ``None`` until the end of the body has been received.
    """

    def __init__(self) -> None:
        self.rest: bytes | None = None
        self._pending = b""  # the start of a line
        self._left = 0  # bytes of content until the end of the current chunk
        self._line_break_is_next = False
        self._previous_line = b""
        self._equal_chunks = 0
        self._chunks_before_run = EQUAL_CHUNKS
        self._run_length = FIRST_RUN
        self._overhead = 0
        self._trailers: int | None = None  # bytes, after the last chunk

    def decode(self, data: bytes) -> bytes:
        """Return the content of the next part of a body.

        :raise MalformedChunks: if the body is invalid, as soon as that is certain.
        """
        if len(data) < self._left:
            self._left -= len(data)
            return data
        content: list[bytes] = []
        data, self._pending = self._pending + data, b""
        position: int | None = 0
        if self._left or self._line_break_is_next:
            position = self._finish_chunk(data, content)
        if position is not None and self._trailers is None:
            position = self._read_chunks(data, position, content)
        if position is not None:
            self._read_trailers(data, position)
        return b"".join(content)

    def _finish_chunk(self, data: bytes, content: list[bytes]) -> int | None:
        """Read the rest of the current chunk, and return the position after it, or ``None`` if data is missing."""
        position = self._left
        content.append(data[:position])
        self._left = 0
        return self._read_line_break(data, position)

    def _read_line_break(self, data: bytes, position: int) -> int | None:
        line_break = data[position : position + 2]
        self._line_break_is_next = line_break != _CRLF
        if not self._line_break_is_next:
            return position + 2
        if not _CRLF.startswith(line_break):
            raise MalformedChunks(_WRONG_SIZE)
        self._pending = line_break
        return None

    def _read_chunks(self, data: bytes, position: int, content: list[bytes]) -> int | None:
        """Read chunks, and return the position after the last one, or ``None`` if data is missing."""
        while (end := data.find(_CRLF, position, position + MAX_LINE)) >= 0:
            line = data[position:end]
            size = _USUAL_SIZES.get(line) or self._parse_size_line(line)
            start = end + 2
            if not size:
                self._trailers = 0
                return start
            stop = start + size
            content.append(data[start:stop])
            if data[stop : stop + 2] != _CRLF:
                self._left = max(0, stop - len(data))
                return None if self._left else self._read_line_break(data, stop)
            position = stop + 2
            if size <= MAX_RUN_SIZE:
                position = self._read_equal_chunks(data, position, line, size, content)
        self._pending = data[position:]
        if len(self._pending) >= MAX_LINE or not _START_OF_SIZE_LINE.fullmatch(self._pending):
            raise MalformedChunks(_NOT_A_SIZE)
        return None

    def _parse_size_line(self, line: bytes) -> int:
        """Return the size of a chunk, and limit the extensions of all chunks."""
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise MalformedChunks(_NOT_A_SIZE)
        size = int(match[1], 16)
        self._overhead = max(0, self._overhead + len(line) - 16 - 2 * size)
        if self._overhead > MAX_OVERHEAD:
            raise MalformedChunks("the extensions of the chunks are too long")
        return size

    def _read_equal_chunks(self, data: bytes, position: int, line: bytes, size: int, content: list[bytes]) -> int:
        """Read a run if several equal chunks have preceded. Return the position after it."""
        if line != self._previous_line:
            self._previous_line, self._equal_chunks = line, 0
            return position
        self._equal_chunks += 1
        if self._equal_chunks < self._chunks_before_run or len(line) > MAX_RUN_DIGITS:
            return position
        return self._read_run(data, position, line, size, content)

    def _read_run(self, data: bytes, position: int, line: bytes, size: int, content: list[bytes]) -> int:
        """Read chunks that have the same size line as the previous ones, and return the position after them.

        A run has a fixed period, so its content consists of every n-th byte. Everything else must equal a template.
        """
        period = len(line) + size + 4
        while available := (len(data) - position) // period:
            count = min(self._run_length, available, MAX_RUN_BYTES // period)
            part = _content_of_run(data, position, count, line, size)
            if part is None:
                self._run_length, self._equal_chunks = FIRST_RUN, 0
                self._chunks_before_run *= 2
                break
            content.append(part)
            position += count * period
            self._run_length = min(self._run_length * 2, MAX_RUN_BYTES)
        return position

    def _read_trailers(self, data: bytes, position: int) -> None:
        """Read the trailers, which are ignored, and the empty line that ends the body."""
        received = self._trailers or 0
        while (end := data.find(_CRLF, position)) >= 0:
            line = data[position:end]
            position = end + 2
            if not line:
                self.rest = data[position:]
                return
            received += len(line)
            if received > MAX_TRAILERS or not _TRAILER.fullmatch(line):
                raise MalformedChunks(_LONG_TRAILERS if received > MAX_TRAILERS else "a trailer is not a header")
        self._trailers, self._pending = received, data[position:]
        if received + len(self._pending) > MAX_TRAILERS:
            raise MalformedChunks(_LONG_TRAILERS)


def _content_of_run(data: bytes, position: int, count: int, line: bytes, size: int) -> bytes | None:
    """Return the content of equal chunks, or ``None`` if not all of them have this size line.

    The content is found by its positions, and is inserted into a template, which must then equal the chunks.
    """
    period = len(line) + size + 4
    template = _template(line, size)
    first, length = len(line) + 2, count * period
    end = position + length
    if size == 1:
        content = data[position + first : end : period]
        template[first:length:period] = content
    else:
        columns = bytearray(count * size)
        for column in range(size):
            part = data[position + first + column : end : period]
            columns[column::size] = part
            template[first + column : length : period] = part
        content = bytes(columns)
    with memoryview(template) as view:
        return content if data.startswith(view[:length], position) else None


@lru_cache(32)
def _template(line: bytes, size: int) -> bytearray:
    """Return the longest run. Its content is overwritten each time that it is used."""
    chunk = line + _CRLF + bytes(size) + _CRLF
    return bytearray(chunk * (MAX_RUN_BYTES // len(chunk)))
