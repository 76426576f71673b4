"""Ids of organizations and applications in the path of a request: UUIDs, or the slugs that stand for them."""

from __future__ import annotations

import re
from uuid import UUID

PathId = UUID | str
"""A UUID, or a slug."""

PATH_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")
"""Matches all UUIDs and slugs, and other names, for which nothing is ever found."""

UUID_LENGTHS = (32, 36)
"""The number of characters of a UUID, without and with hyphens."""

_HEX = re.compile(r"[0-9A-Fa-f]{32}")


def is_slug(text: str) -> bool:
    """Return true if a text can stand for an id.

    UUIDs cannot, nor texts that differ from a UUID only in their hyphens. HTTP clients remove ``.`` and ``..`` from
    paths. The function ``tkserver_is_slug`` in the database applies the same rule.
    """
    return bool(PATH_ID.fullmatch(text)) and text not in (".", "..") and not _HEX.fullmatch(text.replace("-", ""))
