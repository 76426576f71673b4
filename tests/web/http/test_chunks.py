"""The decoder of chunked bodies."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

import pytest

from tkserver.web.http.chunks import MAX_LINE, MAX_OVERHEAD, MAX_TRAILERS, ChunkDecoder, MalformedChunks

NEXT_REQUEST = b"GET / HTTP/1.1\r\n"

SIZES: dict[str, Sequence[int]] = {
    "one byte": [1],
    "two bytes": [2],
    "alternating": [1, 2],
    "almost equal": [*[1] * 20, 2],
    "runs": [*[1] * 500, *[7] * 300, 5000, *[16] * 200],
    "medium": [100],
    "large": [5000],
    "one piece": [1 << 20],
}


def encode(body: bytes, sizes: Sequence[int], line: Callable[[int], bytes] = lambda size: b"%x" % size) -> bytes:
    """Return a body in chunks of these sizes, which repeat.

    :param line: returns the line with the size of a chunk.
    """
    chunks, position, repeated = [], 0, cycle(sizes)
    while position < len(body):
        part = body[position : position + next(repeated)]
        chunks.append(line(len(part)) + b"\r\n" + part + b"\r\n")
        position += len(part)
    return b"".join(chunks) + b"0\r\n\r\n"


def pieces(data: bytes, lengths: Iterator[int]) -> Iterator[bytes]:
    """Divide data as the network does."""
    while data:
        length = next(lengths)
        yield data[:length]
        data = data[length:]


def decode(received: Iterator[bytes]) -> tuple[bytes, bytes]:
    """Return the content of a body, and what follows it."""
    decoder, content = ChunkDecoder(), []
    while decoder.rest is None:
        content.append(decoder.decode(next(received)))
    return b"".join(content), decoder.rest + b"".join(received)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1460, 16_384, 1 << 20])
def test_content(sizes: Sequence[int], piece: int) -> None:
    """The content is found whatever the sizes of chunks and of network packets are, and whatever bytes it contains."""
    body = random.Random(1).randbytes(20_000) + b"1\r\nx\r\n0\r\n\r\n" * 50
    received = encode(body, sizes) + NEXT_REQUEST
    assert decode(pieces(received, cycle([piece]))) == (body, NEXT_REQUEST)


@pytest.mark.parametrize("seed", range(20))
def test_random_pieces(seed: int) -> None:
    """The content is found for random sizes of chunks, in random packets."""
    source = random.Random(seed)
    body = source.randbytes(5000)
    sizes = [source.choice([1, 1, 1, 2, 60, 300]) for _ in range(50) for _ in range(source.choice([1, 40]))]
    received = encode(body, sizes, source.choice([lambda size: b"%X" % size, lambda size: b"%04x;a=b" % size]))
    lengths = iter(lambda: source.choice([1, 10, 500, 4000]), None)
    assert decode(pieces(received, lengths)) == (body, b"")


def test_rest_is_the_next_request() -> None:
    """Everything after the body belongs to the next request."""
    decoder = ChunkDecoder()
    assert decoder.decode(b"3\r\nabc\r\n0\r\nTrailer: x\r\n\r\n" + NEXT_REQUEST) == b"abc"
    assert decoder.rest == NEXT_REQUEST


@pytest.mark.parametrize("size", [b"0" * 15 + b"3", b"3;a", b'3;a="b c"', b"03", b"00000003;" + b"x" * 400])
def test_forms_of_size_lines(size: bytes) -> None:
    """A size has up to 16 digits, and possibly extensions, which are ignored."""
    assert decode(iter([size + b"\r\nabc\r\n0000\r\n\r\n"])) == (b"abc", b"")


@pytest.mark.parametrize(
    "received",
    [
        b"0" * 17,
        b"1" * 17,
        b"fffffffffffffffff",
        b"3 \r\n",
        b" 3\r\n",
        b"+3\r\n",
        b"-3\r\n",
        b"0x3\r\n",
        b"g",
        b"\r\n",
        b";a\r\n",
        b"3\n",
        b"3\rx",
        b"3;a\x00",
        b"3;a\nb",
        b"3;" + b"a" * MAX_LINE,
        b"3\r\nabcd",
        b"3\r\nabc\n",
        b"3\r\nabc\rx",
        b"1\r\na\r\n" * 100 + b"1\r\nab\r\n",
        b"1\r\na\r\n" * 100 + b"1\r\na\r\r" + b"1\r\na\r\n" * 100,
        b"0\r\nno trailer\r\n",
        b"0\r\nA: b\x00\r\n",
        b"0\r\nA: b\nC: d\r\n",
        b"0\r\n" + b"A: " + b"b" * MAX_TRAILERS,
        b"0\r\n" + b"A: b\r\n" * MAX_TRAILERS,
    ],
    ids=repr,
)
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_malformed_body(received: bytes, piece: int) -> None:
    """A malformed body is rejected as soon as it cannot become valid."""
    with pytest.raises(MalformedChunks):
        decode(pieces(received, cycle([piece])))


def test_extensions_are_limited() -> None:
    """Small chunks with long extensions are rejected, however many bytes they pretend to transfer."""
    received = (b"1;" + b"x" * 300 + b"\r\na\r\n") * (MAX_OVERHEAD // 200)
    with pytest.raises(MalformedChunks):
        decode(iter([received]))


def cpu_seconds(body: bytes, sizes: Sequence[int], piece: int) -> float:
    """Return the CPU time that it takes to decode a body: the shortest of several attempts."""
    received = list(pieces(encode(body, sizes), cycle([piece])))
    attempts = []
    for _ in range(5):
        started = time.thread_time()
        assert decode(iter(received))[0] == body
        attempts.append(time.thread_time() - started)
    return min(attempts)


def test_cost_of_tiny_chunks() -> None:
    """A body in chunks of one byte does not take much more time than in chunks of ordinary size."""
    body = random.Random(1).randbytes(200_000)
    ordinary = cpu_seconds(body, [500], 16_384)
    assert cpu_seconds(body, [1], 16_384) < 10 * ordinary
    assert cpu_seconds(body, [3], 16_384) < 10 * ordinary
