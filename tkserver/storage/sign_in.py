"""Links and sessions of the dashboard (``schema/0018_dashboard.sql``)."""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import timedelta

LINK_LIFETIME = timedelta(minutes=5)
SESSION_LIFETIME = timedelta(days=30)

LINK_PREFIX = "tkl_"
SESSION_PREFIX = "tks_"

_TOKEN = re.compile(f"({LINK_PREFIX}|{SESSION_PREFIX})[0-9a-f]{{64}}")

INSERT_LINK = """
INSERT INTO dashboard_links (token_hash, org_id, app_id, can_share, expires_at)
VALUES (%s, %s, %s, %s, now() + %s) RETURNING expires_at
"""

USE_LINK = """
WITH used AS (
    DELETE FROM dashboard_links WHERE token_hash = %s RETURNING org_id, app_id, can_share, expires_at
)
INSERT INTO dashboard_sessions (token_hash, org_id, app_id, can_share, expires_at)
SELECT %s, org_id, app_id, can_share, now() + %s FROM used WHERE expires_at > now()
RETURNING org_id::text, app_id::text, can_share
"""
"""Turns a link into a session. Of two executions at the same time, one waits, and then does not find the link."""

SELECT_SESSION = """
SELECT org_id::text, app_id::text, can_share FROM dashboard_sessions WHERE token_hash = %s AND expires_at > now()
"""

DELETE_SESSION = "DELETE FROM dashboard_sessions WHERE token_hash = %s"

DELETE_ALL = """
WITH links AS (DELETE FROM dashboard_links), ended AS (DELETE FROM dashboard_sessions RETURNING expires_at)
SELECT count(*) FILTER (WHERE expires_at > now()) FROM ended
"""
"""Returns the number of sessions that were valid."""

DELETE_EXPIRED = """
WITH links AS (DELETE FROM dashboard_links WHERE expires_at <= now())
DELETE FROM dashboard_sessions WHERE expires_at <= now()
"""

SELECT_KEY = "SELECT encode(key, 'hex') FROM dashboard_key"


def new_token(prefix: str) -> str:
    """Return a token with 256 random bits."""
    return prefix + secrets.token_hex(32)


def is_token(text: str, prefix: str) -> bool:
    """True if a text has the form of a token with this prefix."""
    return text.startswith(prefix) and _TOKEN.fullmatch(text) is not None


def hash_token(token: str) -> bytes:
    """Return the hash by which a token is stored and found."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
