"""What a body is said to be, and gzip: whole, damaged, and out to fill the memory."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.strategies import thorough
from tkserver.wire.api_errors import InvalidEncoding, PayloadTooLarge, UnsupportedEncoding, UnsupportedMediaType
from tkserver.wire.batch import decode_body

JSON = "application/json"
BODY = b'{"events":[]}'
LIMIT = 1000


def decoded(body: bytes, content_encoding: str | None = "gzip", max_bytes: int = LIMIT) -> bytes:
    return decode_body(body, content_type=JSON, content_encoding=content_encoding, max_bytes=max_bytes)


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
def test_json(content_type: str) -> None:
    """JSON is taken with or without a charset, in any case and spacing."""
    assert decode_body(BODY, content_type=content_type, content_encoding=None, max_bytes=LIMIT) == BODY


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
def test_not_json(content_type: str | None) -> None:
    """A body that is not said to be JSON is refused."""
    with pytest.raises(UnsupportedMediaType):
        decode_body(BODY, content_type=content_type, content_encoding=None, max_bytes=LIMIT)


def test_type_before_encoding() -> None:
    """Where type and encoding are both wrong, the type is what is refused, and the body is not looked at."""
    with pytest.raises(UnsupportedMediaType):
        decode_body(b"no gzip", content_type="text/plain", content_encoding="br", max_bytes=LIMIT)


# --- content encoding


@pytest.mark.parametrize("content_encoding", [None, "identity", "Identity", " identity "])
def test_identity(content_encoding: str | None) -> None:
    """A body that is not compressed comes back as it is, also one that looks compressed."""
    body = gzip.compress(BODY)

    assert decoded(body, content_encoding) == body


@pytest.mark.parametrize("content_encoding", ["gzip", "GZIP", "Gzip", " gzip "])
def test_gzip(content_encoding: str) -> None:
    """A gzip body is inflated."""
    assert decoded(gzip.compress(BODY), content_encoding) == BODY


@pytest.mark.parametrize(
    "content_encoding",
    ["br", "deflate", "zstd", "compress", "gzip, gzip", "gzip, br", "identity, gzip", "gzipped", "*"],
)
def test_unknown_encoding(content_encoding: str) -> None:
    """Any other compression is refused, and so is one on top of another."""
    with pytest.raises(UnsupportedEncoding):
        decoded(gzip.compress(BODY), content_encoding)


# --- gzip


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(gzip.compress(BODY, 0), id="stored"),
        pytest.param(gzip.compress(BODY, 9), id="best"),
        pytest.param(gzip.compress(BODY[:4]) + gzip.compress(BODY[4:]), id="two members"),
        pytest.param(b"".join(gzip.compress(BODY[i : i + 1]) for i in range(len(BODY))), id="a member for each byte"),
        pytest.param(gzip.compress(b"") + gzip.compress(BODY) + gzip.compress(b""), id="empty members around it"),
        # A header with each optional field: FEXTRA, FNAME, FCOMMENT (RFC 1952, section 2.3).
        pytest.param(
            b"\x1f\x8b\x08\x1c\0\0\0\0\0\xff\x02\0ab" + b"name\0comment\0" + gzip.compress(BODY, mtime=0)[10:],
            id="every header field",
        ),
    ],
)
def test_whole(body: bytes) -> None:
    """Every form of whole gzip file inflates to what was compressed."""
    assert decoded(body) == BODY


def test_empty() -> None:
    """A gzip file of nothing is the empty body."""
    assert decoded(gzip.compress(b"")) == b""


@pytest.mark.parametrize("length", range(len(gzip.compress(BODY))))
def test_cut_short(length: int) -> None:
    """A gzip body that ends too early is refused, wherever that is."""
    with pytest.raises(InvalidEncoding):
        decoded(gzip.compress(BODY)[:length])


def test_second_member_cut_short() -> None:
    """A second member must be whole as well."""
    with pytest.raises(InvalidEncoding):
        decoded(gzip.compress(BODY) + gzip.compress(BODY)[:-1])


@pytest.mark.parametrize("garbage", [b"x", b"{}", b"\x1f", b"\x1f\x8b", BODY, b"\0x"])
def test_followed_by_something(garbage: bytes) -> None:
    """What follows a gzip body and is none is refused, not ignored."""
    with pytest.raises(InvalidEncoding):
        decoded(gzip.compress(BODY) + garbage)


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
        pytest.param(b"\x1f\x8b", id="magic only"),
        pytest.param(_with_byte_changed(0), id="wrong magic"),
        pytest.param(_with_byte_changed(2), id="wrong method"),
        pytest.param(_with_byte_changed(-8), id="wrong checksum"),
        pytest.param(_with_byte_changed(-4), id="wrong length"),
    ],
)
def test_no_gzip(body: bytes) -> None:
    """What is said to be gzip and is not, or does not add up, is refused."""
    with pytest.raises(InvalidEncoding):
        decoded(body)


@pytest.mark.parametrize("sizes", [(LIMIT,), (1, LIMIT - 1), (LIMIT, 0, 0)])
def test_inflates_to_the_limit(sizes: tuple[int, ...]) -> None:
    """A body may inflate to the limit, in one member or in several."""
    assert decoded(b"".join(gzip.compress(b" " * size) for size in sizes)) == b" " * LIMIT


@pytest.mark.parametrize("sizes", [(LIMIT + 1,), (1, LIMIT), (LIMIT, 1), (LIMIT, 0, 1), (LIMIT * 1000,)])
def test_inflates_to_more(sizes: tuple[int, ...]) -> None:
    """A body that inflates to one byte more than the limit is too large, in one member or in several."""
    with pytest.raises(PayloadTooLarge):
        decoded(b"".join(gzip.compress(b" " * size) for size in sizes))


@pytest.mark.parametrize("members", [1, 50])
def test_bomb(members: int) -> None:
    """However much is in a body, no more than the limit and one byte is inflated."""
    limit = 100_000
    body = gzip.compress(bytes(90_000 if members > 1 else 50_000_000)) * members
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            decoded(body, max_bytes=limit)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    # Sink buffers grow by doubling; the rest is what is left of the compressed body.
    assert peak < 4 * limit + 2 * len(body)


def test_bomb_cut_short() -> None:
    """What inflates to too much is too large even where its end is missing, for nobody looked so far."""
    with pytest.raises(PayloadTooLarge):
        decoded(gzip.compress(bytes(LIMIT * 100))[:-20])


def test_many_empty_members() -> None:
    """A body of nothing but empty members takes time in proportion to its length."""
    body = gzip.compress(b"", mtime=0) * 240_000
    assert decoded(body) == b""


@thorough
@given(st.binary(max_size=2000), st.integers(0, 2000), st.integers(0, 9))
def test_any_content(content: bytes, limit: int, level: int) -> None:
    """Whatever is compressed comes back whole when it fits the limit, and is too large otherwise."""
    body = gzip.compress(content, level)
    if len(content) <= limit:
        assert decoded(body, max_bytes=limit) == content
    else:
        with pytest.raises(PayloadTooLarge):
            decoded(body, max_bytes=limit)


@thorough
@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(0, 100))
def test_any_body(content: bytes, noise: bytes, position: int) -> None:
    """Noise in a gzip body is refused or changes nothing, and never raises anything but a refusal."""
    compressed = gzip.compress(content, mtime=0)
    position = min(position, len(compressed))
    body = compressed[:position] + noise + compressed[position + len(noise) :]
    try:
        result = decoded(body)
    except (InvalidEncoding, PayloadTooLarge):
        return
    # The modification time, the operating system and a few flags of the header are not checked by anything.
    assert result == content
