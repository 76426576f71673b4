"""The signature of a request: which bytes are signed, and how they are checked.

Three dialects are spoken by clients in the field; all of them sign ``{timestamp}:{body}``, with ``{nonce}:`` in
between exactly when the ``X-Nonce`` header is sent. Everything is taken as the raw bytes that came over the wire.
"""

from __future__ import annotations

import hmac


def signed_message(timestamp: bytes, nonce: bytes | None, body: bytes) -> bytes:
    """The bytes that a client signs.

    :param timestamp: the ``X-Timestamp`` header as sent.
    :param nonce: the ``X-Nonce`` header as sent, or ``None`` where there is none; an empty header is a header.
    :param body: the body as sent, still compressed where it is.
    """
    parts = (timestamp, body) if nonce is None else (timestamp, nonce, body)
    return b":".join(parts)


def sign(secret: str, message: bytes) -> bytes:
    """HMAC-SHA256 (RFC 2104) in lower-case hexadecimal; the key is the secret's own UTF-8 bytes."""
    return hmac.digest(secret.encode(), message, "sha256").hex().encode()


def matches(secret: str, message: bytes, signature: bytes) -> bool:
    """Whether ``signature``, hexadecimal in either case, signs ``message``. Takes the same time either way."""
    return hmac.compare_digest(sign(secret, message), signature.lower())
