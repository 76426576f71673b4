"""Decoding of bodies: content type, content encoding, and gzip, including damaged data and gzip bombs."""

from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib
from io import BytesIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.strategies import thorough
from tkserver.wire.api_errors import InvalidEncoding, PayloadTooLarge, UnsupportedEncoding, UnsupportedMediaType
from tkserver.wire.batch import decode_body, run_steps

JSON = "application/json"
BODY = b'{"events":[]}'
LIMIT = 1000


def decode(body: bytes, content_encoding: str | None = "gzip", max_bytes: int = LIMIT) -> bytes:
    return run_steps(decode_body(body, content_type=JSON, content_encoding=content_encoding, max_bytes=max_bytes))


# --- content type


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        'application/json ; charset="utf-8"',
        "Application/JSON",
        " application/json ",
    ],
)
def test_json_content_type_is_accepted(content_type: str) -> None:
    """The content type of JSON is accepted with or without a charset, in any case and spacing."""
    steps = decode_body(BODY, content_type=content_type, content_encoding=None, max_bytes=LIMIT)
    assert run_steps(steps) == BODY


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        ";",
        "text/plain",
        "text/json",
        "application/jsonl",
        "application/x-json",
        "application/json-patch+json",
        "application",
        "json",
        "application/x-www-form-urlencoded",
        "text/plain; application/json",
        "application/json, text/plain",
        "application/json charset=utf-8",
    ],
)
def test_other_content_type_is_rejected(content_type: str | None) -> None:
    """A body with another content type, or without one, is rejected."""
    with pytest.raises(UnsupportedMediaType):
        run_steps(decode_body(BODY, content_type=content_type, content_encoding=None, max_bytes=LIMIT))


def test_content_type_is_checked_first() -> None:
    """If both content type and content encoding are wrong, the error is about the content type."""
    with pytest.raises(UnsupportedMediaType):
        run_steps(decode_body(b"not gzip", content_type="text/plain", content_encoding="br", max_bytes=LIMIT))


# --- content encoding


@pytest.mark.parametrize("content_encoding", [None, "identity", "Identity", " identity "])
def test_identity_encoding_returns_body_unchanged(content_encoding: str | None) -> None:
    """A body without compression is returned unchanged, even if it looks like gzip."""
    body = gzip.compress(BODY)

    assert decode(body, content_encoding) == body


@pytest.mark.parametrize("content_encoding", ["gzip", "GZIP", "Gzip", " gzip "])
def test_gzip_body_is_decompressed(content_encoding: str) -> None:
    """A gzip body is decompressed."""
    assert decode(gzip.compress(BODY), content_encoding) == BODY


@pytest.mark.parametrize(
    "content_encoding",
    ["br", "deflate", "zstd", "compress", "gzip, gzip", "gzip, br", "identity, gzip", "gzipped", "*"],
)
def test_other_content_encoding_is_rejected(content_encoding: str) -> None:
    """Any other encoding is rejected, and so are combinations of encodings."""
    with pytest.raises(UnsupportedEncoding):
        decode(gzip.compress(BODY), content_encoding)


# --- gzip


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(gzip.compress(BODY, 0), id="stored"),
        pytest.param(gzip.compress(BODY, 9), id="best"),
        pytest.param(gzip.compress(BODY[:4]) + gzip.compress(BODY[4:]), id="two members"),
        pytest.param(b"".join(gzip.compress(BODY[i : i + 1]) for i in range(len(BODY))), id="one member for each byte"),
        pytest.param(
            gzip.compress(b"") + gzip.compress(BODY) + gzip.compress(b""), id="empty members before and after"
        ),
        # A header with all optional fields: FEXTRA, FNAME, FCOMMENT (RFC 1952, section 2.3).
        pytest.param(
            b"\x1f\x8b\x08\x1c\0\0\0\0\0\xff\x02\0ab" + b"name\0comment\0" + gzip.compress(BODY, mtime=0)[10:],
            id="all header fields",
        ),
    ],
)
def test_all_forms_of_gzip_are_decompressed(body: bytes) -> None:
    """Every valid form of gzip is decompressed."""
    assert decode(body) == BODY


def test_empty_content_is_decompressed() -> None:
    """A gzip body can have an empty content."""
    assert decode(gzip.compress(b"")) == b""


@pytest.mark.parametrize("length", range(len(gzip.compress(BODY))))
def test_truncated_body_is_rejected(length: int) -> None:
    """A gzip body that is truncated at any position is rejected."""
    with pytest.raises(InvalidEncoding):
        decode(gzip.compress(BODY)[:length])


def test_truncated_second_member_is_rejected() -> None:
    """A gzip body whose second member is truncated is rejected."""
    with pytest.raises(InvalidEncoding):
        decode(gzip.compress(BODY) + gzip.compress(BODY)[:-1])


@pytest.mark.parametrize("garbage", [b"x", b"{}", b"\x1f", b"\x1f\x8b", BODY, b"\0x"])
def test_trailing_garbage_is_rejected(garbage: bytes) -> None:
    """A gzip body that is followed by other data is rejected."""
    with pytest.raises(InvalidEncoding):
        decode(gzip.compress(BODY) + garbage)


def _with_byte_changed(position: int) -> bytes:
    body = bytearray(gzip.compress(BODY, mtime=0))
    body[position] ^= 0xFF
    return bytes(body)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(BODY, id="plain JSON"),
        pytest.param(zlib.compress(BODY), id="zlib"),
        pytest.param(zlib.compress(BODY)[2:-4], id="raw deflate"),
        pytest.param(b"\x1f\x8b", id="magic number only"),
        pytest.param(_with_byte_changed(0), id="wrong magic number"),
        pytest.param(_with_byte_changed(2), id="wrong method"),
        pytest.param(_with_byte_changed(-8), id="wrong checksum"),
        pytest.param(_with_byte_changed(-4), id="wrong length"),
    ],
)
def test_invalid_gzip_is_rejected(body: bytes) -> None:
    """A body that is not gzip, or has a wrong checksum or length, is rejected."""
    with pytest.raises(InvalidEncoding):
        decode(body)


@pytest.mark.parametrize("sizes", [(LIMIT,), (1, LIMIT - 1), (LIMIT, 0, 0)])
def test_content_of_maximum_size_is_accepted(sizes: tuple[int, ...]) -> None:
    """A content of the maximum size is accepted, in one member or in several."""
    assert decode(b"".join(gzip.compress(b" " * size) for size in sizes)) == b" " * LIMIT


@pytest.mark.parametrize("sizes", [(LIMIT + 1,), (1, LIMIT), (LIMIT, 1), (LIMIT, 0, 1), (LIMIT * 1000,)])
def test_larger_content_is_rejected(sizes: tuple[int, ...]) -> None:
    """A content of one byte more than the maximum is rejected, in one member or in several."""
    with pytest.raises(PayloadTooLarge):
        decode(b"".join(gzip.compress(b" " * size) for size in sizes))


@pytest.mark.parametrize("members", [1, 50])
def test_gzip_bomb_needs_little_memory(members: int) -> None:
    """Not more than one byte above the maximum is decompressed, however large the content is."""
    limit = 100_000
    body = gzip.compress(bytes(90_000 if members > 1 else 50_000_000)) * members
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            decode(body, max_bytes=limit)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    # Buffers grow by doubling. The second term is for copies of the compressed body.
    assert peak < 4 * limit + 2 * len(body)


def test_truncated_gzip_bomb_is_too_large() -> None:
    """A content that is too large is rejected for its size, even if the body is truncated after that."""
    with pytest.raises(PayloadTooLarge):
        decode(gzip.compress(bytes(LIMIT * 100))[:-20])


def test_many_empty_members_take_linear_time() -> None:
    """The time for a body of empty members is proportional to its length. Otherwise this test times out."""
    body = gzip.compress(b"", mtime=0) * 240_000
    assert decode(body) == b""


@thorough
@given(st.binary(max_size=2000), st.integers(0, 2000), st.integers(0, 9))
def test_any_content_is_decompressed_up_to_limit(content: bytes, limit: int, level: int) -> None:
    """Any content is decompressed if it is not larger than the limit, and rejected otherwise."""
    body = gzip.compress(content, level)
    if len(content) <= limit:
        assert decode(body, max_bytes=limit) == content
    else:
        with pytest.raises(PayloadTooLarge):
            decode(body, max_bytes=limit)


# Members of all sizes are decompressed in parts. Random bytes make the compressed data long.
_LONG_CONTENTS = {
    "zeros": bytes(5_000_000),
    "random": random.Random(1).randbytes(3_000_000),
    "text": b"".join(b"%d" % number for number in range(400_000)),
    "512": random.Random(2).randbytes(512),
    "64 KiB": random.Random(3).randbytes(65_536),
    "1 MiB": bytes(1 << 20),
}


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("name", _LONG_CONTENTS)
def test_long_members_are_decompressed(name: str, level: int) -> None:
    """Members of any length are decompressed, also with zero bytes and other members around them."""
    content = _LONG_CONTENTS[name]
    compressed = gzip.compress(content, level)
    body = gzip.compress(b"first") + b"\0" * 3 + compressed + b"\0" * 100_000 + gzip.compress(b"last") + b"\0"
    limit = len(content) + 9

    assert decode(body, max_bytes=limit) == b"first" + content + b"last"
    with pytest.raises(PayloadTooLarge):
        decode(body, max_bytes=limit - 1)
    with pytest.raises(InvalidEncoding):
        decode(gzip.compress(b"first") + compressed[:-1], max_bytes=limit)


def _deflate_of_empty_blocks(count: int) -> bytes:
    """Return a gzip member of empty stored blocks, which contain no data."""
    header, trailer = gzip.compress(b"", mtime=0)[:10], bytes(8)
    return header + b"\0\0\0\xff\xff" * count + b"\1\0\0\xff\xff" + trailer


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(gzip.compress(bytes(10_000_000)), id="zeros"),
        pytest.param(gzip.compress(random.Random(1).randbytes(3_000_000), 0), id="not compressed"),
        pytest.param(gzip.compress(b"", mtime=0) * 50_000, id="empty members"),
        pytest.param(gzip.compress(b"x", mtime=0) * 50_000, id="short members"),
        pytest.param(_deflate_of_empty_blocks(200_000), id="empty blocks"),
    ],
)
def test_long_body_is_decompressed_in_steps(body: bytes) -> None:
    """While a long body is decompressed, the caller can do other work, even if the body contains no data."""
    steps = decode_body(body, content_type=JSON, content_encoding="gzip", max_bytes=20_000_000)

    assert sum(1 for _ in steps) >= 8


def _naive_decode(body: bytes, limit: int) -> bytes | type[Exception]:
    """Return the content of a gzip body, or the type of the error, by means of the standard library."""
    try:
        content = gzip.GzipFile(fileobj=BytesIO(body)).read() if body else None
    except (EOFError, OSError, zlib.error):
        return InvalidEncoding
    if content is None:
        return InvalidEncoding
    return content if len(content) <= limit else PayloadTooLarge


_PARTS = st.one_of(
    st.builds(gzip.compress, st.binary(max_size=600), st.integers(0, 9), mtime=st.just(0)),
    st.builds(gzip.compress, st.binary(max_size=600), st.integers(0, 9), mtime=st.just(0)),
    st.integers(0, 600).map(bytes),
    st.builds(lambda content, end: gzip.compress(content, mtime=0)[:-end], st.binary(max_size=9), st.integers(1, 12)),
    st.binary(max_size=5),
)


@thorough
@given(st.lists(_PARTS, max_size=6).map(b"".join), st.sampled_from([100, 10_000]))
@example(b"", 100)
@example(b"\0" + gzip.compress(b"x"), 100)
@example(gzip.compress(b"x") + b"\0" * 600 + gzip.compress(b"y") + b"\0", 100)
def test_members_and_padding_agree_with_standard_library(body: bytes, limit: int) -> None:
    """Members, zero bytes between them, truncated members and garbage are handled as by the standard library."""
    expected = _naive_decode(body, limit)
    try:
        result: bytes | type[Exception] = decode(body, max_bytes=limit)
    except (InvalidEncoding, PayloadTooLarge) as error:
        result = type(error)
    if result is PayloadTooLarge and expected is InvalidEncoding:
        return  # the body is too large before it is invalid

    assert result == expected


@thorough
@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(0, 100))
def test_damaged_body_is_rejected_or_unchanged(content: bytes, noise: bytes, position: int) -> None:
    """A damaged gzip body is rejected, unless the damage does not change the content. No other exception is raised."""
    compressed = gzip.compress(content, mtime=0)
    position = min(position, len(compressed))
    body = compressed[:position] + noise + compressed[position + len(noise) :]
    try:
        result = decode(body)
    except (InvalidEncoding, PayloadTooLarge):
        return
    # The modification time, the operating system and some flags of the header have no checksum.
    assert result == content
