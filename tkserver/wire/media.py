"""What a body is said to be, and its bytes without the compression."""

from __future__ import annotations

import gzip
import zlib
from io import BytesIO

from tkserver.wire.refusal import InvalidEncoding, PayloadTooLarge, UnsupportedEncoding, UnsupportedMediaType


def decode_body(body: bytes, *, content_type: str | None, content_encoding: str | None, max_bytes: int) -> bytes:
    """The JSON text of a body.

    :param body: as it came over the wire.
    :param content_type: the header, where it was sent; ``content_encoding`` likewise.
    :param max_bytes: the most that a compressed body may inflate to.
    :raise Refusal: when it is not JSON, or compressed in another way than by gzip, or not whole, or too large.
    """
    if (content_type or "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("send Content-Type: application/json")
    encoding = (content_encoding or "identity").strip().lower()
    if encoding == "gzip":
        return _inflate(body, max_bytes)
    if encoding != "identity":
        raise UnsupportedEncoding("the only Content-Encoding that is understood is gzip")
    return body


def _inflate(body: bytes, max_bytes: int) -> bytes:
    """Decompress a gzip body (RFC 1952), of one or several members, and no more of it than ``max_bytes``."""
    try:
        text = gzip.GzipFile(fileobj=BytesIO(body)).read(max_bytes + 1)
    except EOFError:
        raise InvalidEncoding("the gzip body is cut short") from None
    except (OSError, zlib.error):
        raise InvalidEncoding("the body is not valid gzip") from None
    if not body:
        raise InvalidEncoding("the body is empty, which is not valid gzip")
    if len(text) > max_bytes:
        raise PayloadTooLarge(f"the body inflates to more than {max_bytes} bytes: send fewer events at once")
    return text
