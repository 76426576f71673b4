"""Share links of the dashboard (``schema/0020_share_links.sql``)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

MAX_NAME = 100
"""Characters."""

MAX_ID = 2**63 - 1

SHAREABLE = ("overview", "commands", "versions", "errors", "environment", "retention", "command")
"""The pages that a link can show: those without single events. The last one needs the name of a command."""

LIFETIMES = (1, 7, 30, 90, 365)
"""Days for which a link can be valid."""

DEFAULT_LIFETIME = 30

PATH = "/dashboard/shared/"
"""Precedes the token in a link."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{22}")

_COLUMNS = "id, org_id::text, app_id::text, name, pages, filters, created_at, expires_at"

INSERT = """
INSERT INTO share_links (token_hash, org_id, app_id, name, pages, filters, expires_at)
VALUES (%s, %s, %s, %s, %s, %s, now() + %s) RETURNING expires_at
"""

SELECT_BY_TOKEN = f"SELECT {_COLUMNS} FROM share_links WHERE token_hash = %s AND expires_at > now()"

SELECT_ALL = f"""
SELECT {_COLUMNS} FROM share_links
WHERE expires_at > now() AND (%s::uuid IS NULL OR (app_id, org_id) = (%s::uuid, %s::uuid)) ORDER BY id
"""
"""Selects the links of one application, or of all. Its parameters are ``app_id`` twice, and ``org_id``."""

DELETE = """
DELETE FROM share_links
WHERE id = %s AND (%s::uuid IS NULL OR (app_id, org_id) = (%s::uuid, %s::uuid)) RETURNING name
"""
"""Deletes a link, of the same applications as :data:`SELECT_ALL`."""

DELETE_EXPIRED = "DELETE FROM share_links WHERE expires_at <= now()"


class ShareLink(NamedTuple):
    """A share link.

    :ivar pages: the last segments of the paths of the pages that it shows, the first one first.
    :ivar filters: the period and the filters, as the query string of a page.
    """

    id: int
    org_id: str
    app_id: str
    name: str
    pages: Sequence[str]
    filters: str
    created_at: datetime
    expires_at: datetime

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> ShareLink:
        """Return the link of a row."""
        return cls(*row)


def of_app(app_id: str | None, org_id: str | None) -> tuple[str | None, str | None, str | None]:
    """Return the parameters that select the links of an application, or all if the ids are ``None``."""
    return app_id, app_id, org_id


def new_share_token() -> str:
    """Return a token with 128 random bits."""
    return secrets.token_urlsafe(16)


def is_share_token(text: str) -> bool:
    """True if a text has the form of a token."""
    return _TOKEN.fullmatch(text) is not None
