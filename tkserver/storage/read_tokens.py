"""Tokens that allow to read statistics (``schema/0014_read_tokens.sql``)."""

from __future__ import annotations

import hashlib
import secrets

PREFIX = "tkr_"


def new_read_token() -> str:
    """Return a token with 256 random bits."""
    return PREFIX + secrets.token_hex(32)


def hash_read_token(token: str) -> bytes:
    """Return the hash by which a token is stored and found.

    A token cannot be guessed, unlike a password. It needs no salt, and no hash function that is slow.
    """
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
