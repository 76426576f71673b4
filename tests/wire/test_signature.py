"""Signatures: the signed bytes, and test vectors of other implementations."""

from __future__ import annotations

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.strategies import thorough
from tkserver.wire.batch import run_steps
from tkserver.wire.signature import matches, matches_in_steps, sign, signed_message

# The secret of the demo application. Its length is odd, so it cannot be decoded as hexadecimal.
SECRET = "9f4b3c2a1e8d7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d4e3f2a1b0"
TIMESTAMP = b"1700000000"
NONCE = b"3f2b8c1e-5d4a-4b6c-9e7f-0a1b2c3d4e5f"
BODY = b'{"events":[]}'

# From OpenSSL: printf '1700000000:{"events":[]}' | openssl dgst -sha256 -hmac "$secret"
WITHOUT_NONCE = b"b121f0c4cd32e58cc60195f1b808f477584d4bf12739123d49487b37d6a83c67"
WITH_NONCE = b"fe43b04e8cdbcb476092c56ba235f76cbc9af0b56f7eabc6e8f413696633200f"
WITH_EMPTY_NONCE = b"a45278ccacd2641d85abc74aac94134552a3414563b0e2ede3f72604b4dacbd7"
WITH_COMPRESSED_BODY = b"43386aee4f2b6311a4c73f749f4a043b0f956a6273dcf210adfbbe2de485207a"
WITH_UNICODE_SECRET = b"766a625e5f51470108ae268f4edfc3e13e7c8f76924d66dd843caa805c900a29"


@pytest.mark.parametrize(
    ("nonce", "body", "signature"),
    [
        pytest.param(None, BODY, WITHOUT_NONCE, id="documented protocol, without nonce"),
        pytest.param(NONCE, BODY, WITH_NONCE, id="shipped SDK, with nonce"),
        pytest.param(b"", BODY, WITH_EMPTY_NONCE, id="empty nonce"),
        pytest.param(None, b"\x1f\x8b\x00\xff", WITH_COMPRESSED_BODY, id="compressed body"),
    ],
)
def test_signed_bytes_of_all_protocol_variants(nonce: bytes | None, body: bytes, signature: bytes) -> None:
    """Every variant of the protocol signs the bytes that the contract defines."""
    message = signed_message(TIMESTAMP, nonce, body)

    assert sign(SECRET, message) == signature
    assert matches(SECRET, message, signature)


def test_secret_is_encoded_as_utf8() -> None:
    """The key of the HMAC is the UTF-8 encoding of the secret."""
    message = signed_message(TIMESTAMP, None, '{"events":["naïve"]}'.encode())

    assert sign("schlüssel", message) == WITH_UNICODE_SECRET


@pytest.mark.parametrize(
    ("key", "message", "signature"),
    [
        (
            "Jefe",
            b"what do ya want for nothing?",
            b"5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
        ("\x0b" * 20, b"Hi There", b"b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
    ],
)
def test_vectors_of_rfc_4231(key: str, message: bytes, signature: bytes) -> None:
    """The HMAC has the values of test cases 2 and 1 of RFC 4231."""
    assert sign(key, message) == signature


@pytest.mark.parametrize("signature", [WITH_NONCE.upper(), WITH_NONCE[:32].upper() + WITH_NONCE[32:]])
def test_upper_case_signature_is_accepted(signature: bytes) -> None:
    """A signature in upper or mixed case is accepted."""
    assert matches(SECRET, signed_message(TIMESTAMP, NONCE, BODY), signature)


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        WITH_NONCE[:-1],
        WITH_NONCE + b"0",
        WITH_NONCE[:-1] + b"e",
        b" " + WITH_NONCE,
        bytes.fromhex(WITH_NONCE.decode()),
        b"\xc5\xbf" * 32,
        WITHOUT_NONCE,
        WITH_EMPTY_NONCE,
    ],
)
def test_wrong_signature_is_rejected(signature: bytes) -> None:
    """A signature that is truncated, too long, changed, not hexadecimal, or of another variant is rejected."""
    assert not matches(SECRET, signed_message(TIMESTAMP, NONCE, BODY), signature)


@pytest.mark.parametrize(
    ("secret", "timestamp", "nonce", "body"),
    [
        (SECRET[:-1], TIMESTAMP, NONCE, BODY),
        (SECRET.upper(), TIMESTAMP, NONCE, BODY),
        (SECRET, b"1700000001", NONCE, BODY),
        (SECRET, b" 1700000000", NONCE, BODY),
        (SECRET, b"01700000000", NONCE, BODY),
        (SECRET, TIMESTAMP, NONCE.upper(), BODY),
        (SECRET, TIMESTAMP, None, BODY),
        (SECRET, TIMESTAMP, NONCE, BODY + b"\n"),
        (SECRET, TIMESTAMP, NONCE, b'{"events": []}'),
    ],
)
def test_signature_covers_all_inputs(secret: str, timestamp: bytes, nonce: bytes | None, body: bytes) -> None:
    """A signature is invalid for any other secret, timestamp, nonce or body."""
    assert not matches(secret, signed_message(timestamp, nonce, body), WITH_NONCE)


@thorough
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
    st.binary(max_size=20),
    st.none() | st.binary(max_size=40),
    st.binary(max_size=80),
)
def test_any_signature_matches_only_its_message(
    secret: str, timestamp: bytes, nonce: bytes | None, body: bytes
) -> None:
    """The signature of any message is valid for this message and invalid for another one."""
    message = signed_message(timestamp, nonce, body)
    signature = sign(secret, message)

    assert matches(secret, message, signature)
    assert not matches(secret, message + b"\0", signature)


@pytest.mark.parametrize("size", [0, 1, 262_143, 262_144, 262_145, 1_000_000])
@pytest.mark.parametrize("nonce", [None, b"", NONCE], ids=["no nonce", "empty nonce", "nonce"])
def test_signature_of_long_body_in_steps(size: int, nonce: bytes | None) -> None:
    """The result in steps is the same as at once, and no step is long."""
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    valid = sign(SECRET, signed_message(TIMESTAMP, nonce, body))
    steps = matches_in_steps(SECRET, TIMESTAMP, nonce, body, valid.upper())

    assert sum(1 for _ in steps) >= size // 262_144
    assert run_steps(matches_in_steps(SECRET, TIMESTAMP, nonce, body, valid))
    assert not run_steps(matches_in_steps(SECRET, TIMESTAMP, nonce, body + b"x", valid))
    assert not run_steps(matches_in_steps(SECRET, TIMESTAMP, b"other", body, valid))


@pytest.mark.parametrize("signature", [WITH_NONCE, b"0" * 64, b""])
def test_signatures_are_compared_in_constant_time(signature: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both signatures are passed completely to ``hmac.compare_digest``."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(expected: bytes, given: bytes) -> bool:
        compared.append((expected, given))
        return expected == given

    monkeypatch.setattr(hmac, "compare_digest", compare)
    matches(SECRET, signed_message(TIMESTAMP, NONCE, BODY), signature)
    run_steps(matches_in_steps(SECRET, TIMESTAMP, NONCE, BODY, signature))

    assert compared == [(WITH_NONCE, signature)] * 2
