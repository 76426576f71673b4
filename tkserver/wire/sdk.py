"""The SDK of a client, from the header ``X-SDK-Version``."""

from __future__ import annotations

import re
from functools import lru_cache

PUBLISHED_SDK = "telemetry-kit-rust"

LAST_WITH_FLAT_ERRORS = (0, 3, 0)
"""The last version of the published SDK that can only parse errors in the flat format."""

MAX_LENGTH = 100

_VERSION = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,9}))?(?:\.([0-9]{1,9}))?(?:[+-][0-9A-Za-z.+-]*)?")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


@lru_cache(maxsize=256)
def reads_flat_errors(header: str | None) -> bool:
    """Return true if the SDK can only parse errors in the flat format.

    :param header: the ``X-SDK-Version`` header, or ``None`` if it was not sent.
    """
    name, _, version = (header or "").strip().partition("/")
    match = _VERSION.fullmatch(version)
    if name != PUBLISHED_SDK or match is None:
        return False
    return tuple(int(part or 0) for part in match.groups()) <= LAST_WITH_FLAT_ERRORS


def name_and_version(header: str | None) -> tuple[str | None, str | None]:
    """Return the name and the version of the SDK, without unprintable characters; ``None`` for what was not sent.

    :param header: see :func:`reads_flat_errors`.
    """
    text = _UNPRINTABLE.sub("?", (header or "").strip())[: 2 * MAX_LENGTH]
    name, _, version = text.partition("/")
    return name[:MAX_LENGTH] or None, version[:MAX_LENGTH] or None
