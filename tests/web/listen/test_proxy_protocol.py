"""Headers of the PROXY protocol: valid ones, incomplete ones, and malformed ones."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tkserver.web.listen.proxy_protocol import MalformedHeader, parse_header

V2 = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command: int, family: int, content: bytes, length: int | None = None) -> bytes:
    """Return a header of version 2."""
    return V2 + bytes([command, family]) + (len(content) if length is None else length).to_bytes(2, "big") + content


PORTS = (1234).to_bytes(2, "big") + (443).to_bytes(2, "big")
IPV4 = bytes([203, 0, 113, 9, 192, 0, 2, 1]) + PORTS
IPV6 = ip_address("2001:db8::7").packed + ip_address("2001:db8::1").packed + PORTS

VALID = {
    b"PROXY TCP4 203.0.113.9 192.0.2.1 1234 443\r\n": "203.0.113.9",
    b"PROXY TCP6 2001:db8::7 2001:db8::1 1234 443\r\n": "2001:db8::7",
    b"PROXY TCP6 " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n": ":".join(["ffff"] * 8),
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN " + b"f" * 90 + b"\r\n": None,
    v2(0x21, 0x11, IPV4): "203.0.113.9",
    v2(0x21, 0x21, IPV6): "2001:db8::7",
    v2(0x21, 0x11, IPV4 + b"\x03\0\x04abcd"): "203.0.113.9",
    v2(0x20, 0x00, b""): None,
    v2(0x20, 0x11, IPV4): None,
    v2(0x21, 0x00, b""): None,
}


@pytest.mark.parametrize("header", VALID, ids=[f"valid {number}" for number in range(len(VALID))])
def test_valid_header(header: bytes) -> None:
    """The address of the client is found, what follows the header is not part of it, and it may arrive in parts."""
    parsed = parse_header(header + b"GET / HTTP/1.1\r\n")
    assert parsed is not None
    client, length = parsed
    assert (getattr(client, "host", None), length) == (VALID[header], len(header))
    assert all(parse_header(header[:end]) is None for end in range(len(header)))


MALFORMED = [
    b"GET /health HTTP/1.1\r\n",
    b"\x16\x03\x01",
    b"PROXYTCP4",
    b"proxy TCP4 203.0.113.9 192.0.2.1 1234 443\r\n",
    b"PROXY \r\n",
    b"PROXY TCP4\r\n",
    b"PROXY TCP5 203.0.113.9 192.0.2.1 1234 443\r\n",
    b"PROXY TCP4 203.0.113.9 192.0.2.1 1234\r\n",
    b"PROXY TCP4 203.0.113.9 192.0.2.1 1234 443 5\r\n",
    b"PROXY TCP4  203.0.113.9 192.0.2.1 1234 443\r\n",
    b"PROXY TCP4 x 192.0.2.1 1234 443\r\n",
    b"PROXY TCP4 999.0.113.9 192.0.2.1 1234 443\r\n",
    b"PROXY TCP4 2001:db8::7 192.0.2.1 1234 443\r\n",
    b"PROXY TCP6 203.0.113.9 192.0.2.1 1234 443\r\n",
    b"PROXY TCP6 fe80::1%\xff 2001:db8::1 1234 443\r\n",
    b"PROXY TCP4 \xff\xfe 192.0.2.1 1234 443\r\n",
    b"PROXY TCP4 203.0.113.9 192.0.2.1 port 443\r\n",
    b"PROXY TCP4 203.0.113.9 192.0.2.1 1234 \r\n",
    b"PROXY TCP4 203.0.113.9 192.0.2.1 65536 443\r\n",
    b"PROXY TCP4 203.0.113.9 192.0.2.1 -1 443\r\n",
    b"PROXY TCP4 203.0.113.9 192.0.2.1 " + b"9" * 40 + b" 443\r\n",
    b"PROXY UNKNOWN " + b"f" * 200,
    v2(0x11, 0x11, IPV4),
    v2(0x22, 0x11, IPV4),
    v2(0x21, 0x41, IPV4),
    v2(0x21, 0x13, IPV4),
    v2(0x21, 0x11, IPV4[:-1]),
    v2(0x21, 0x21, IPV4),
    v2(0x21, 0x11, b""),
    v2(0x21, 0x11, b"", 0xFFFF),
]


@pytest.mark.parametrize("data", MALFORMED, ids=[f"malformed {number}" for number in range(len(MALFORMED))])
def test_malformed_header(data: bytes) -> None:
    """A header that cannot become valid is an error, whose text contains nothing of it."""
    with pytest.raises(MalformedHeader) as error:
        parse_header(data)
    assert "203" not in str(error.value)


@given(
    st.sampled_from([b"PROXY ", b"PROXY TCP4 ", V2, V2 + b"\x21", V2 + b"\x21\x11\0\x0c", b""]), st.binary(max_size=300)
)
def test_any_input(start: bytes, rest: bytes) -> None:
    """Any input is a header, the beginning of one, or malformed; there is no other exception."""
    try:
        parsed = parse_header(start + rest)
    except MalformedHeader:
        return
    assert parsed is None or 0 < parsed[1] <= len(start + rest)
