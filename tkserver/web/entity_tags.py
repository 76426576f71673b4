"""Conditional requests: a client that has a response already gets a 304 (RFC 9110, section 13)."""

from __future__ import annotations

import re

from msgspec.structs import replace

from tkserver.web.http.request import ApiRequest
from tkserver.web.http.response import Response

_TAG = re.compile(r'(?:W/)?("[^"]*")')


def is_current(request: ApiRequest, tag: str) -> bool:
    """True if the client has the response with this entity tag, by the weak comparison (RFC 9110, section 13.1.2)."""
    values = b",".join(request.requestHeaders.getRawHeaders(b"if-none-match", ())).decode("latin-1")
    return values.strip() == "*" or tag.removeprefix("W/") in _TAG.findall(values)


def conditional(request: ApiRequest, response: Response, tag: str) -> Response:
    """Return a response with its entity tag, without its body if the client has it."""
    tagged = response.with_headers({"ETag": tag})
    return replace(tagged, status=304, body=None) if is_current(request, tag) else tagged
