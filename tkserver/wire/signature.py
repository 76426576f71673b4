"""Signatures of requests.

Existing clients use three variants of the protocol. All of them sign ``{timestamp}:{body}``, or
``{timestamp}:{nonce}:{body}`` if they send the ``X-Nonce`` header. The signed bytes are those that are sent.
"""

from __future__ import annotations

import hmac
from collections.abc import Generator

_STEP_BYTES = 131_072


def signed_message(timestamp: bytes, nonce: bytes | None, body: bytes) -> bytes:
    """Return the bytes that a client signs.

    :param timestamp: the ``X-Timestamp`` header as sent.
    :param nonce: the ``X-Nonce`` header as sent, even if it is empty, or ``None`` if it was not sent.
    :param body: the body as sent, before decompression.
    """
    parts = (timestamp, body) if nonce is None else (timestamp, nonce, body)
    return b":".join(parts)


def sign(secret: str, message: bytes) -> bytes:
    """Return the HMAC-SHA256 (RFC 2104) of a message in lower-case hexadecimal.

    :param secret: its UTF-8 bytes are the key, even if it looks like hexadecimal.
    """
    return hmac.digest(secret.encode(), message, "sha256").hex().encode()


def matches(secret: str, message: bytes, signature: bytes) -> bool:
    """Return true if a signature is valid. The comparison takes constant time.

    :param signature: hexadecimal, in upper or lower case.
    """
    return hmac.compare_digest(sign(secret, message), signature.lower())


def matches_in_steps(
    secret: str, timestamp: bytes, nonce: bytes | None, body: bytes, signature: bytes
) -> Generator[None, None, bool]:
    """Return true if the signature of a long body is valid. The comparison takes constant time.

    The body is not copied. The parameters are those of :func:`signed_message` and :func:`matches`.
    """
    mac = hmac.new(secret.encode(), signed_message(timestamp, nonce, b""), "sha256")
    view = memoryview(body)
    for start in range(0, len(view), _STEP_BYTES):
        mac.update(view[start : start + _STEP_BYTES])
        yield
    return hmac.compare_digest(mac.hexdigest().encode(), signature.lower())
