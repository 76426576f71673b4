"""Names of organizations and applications for people, and their slugs for the path of requests."""

from __future__ import annotations

from tkserver.operations.exceptions import InvalidArgument
from tkserver.wire.ids import is_slug

MAX_NAME_LENGTH = 100


def check_name(name: str) -> None:
    """Check that a name can be printed in one line and typed.

    :raise InvalidArgument: if it cannot.
    """
    if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable() or name != name.strip():
        raise InvalidArgument(
            f"a name consists of 1 to {MAX_NAME_LENGTH} printable characters, without spaces at the beginning or end"
        )


def check_slug(slug: str) -> None:
    """Check that a slug can stand for an id in a path.

    :raise InvalidArgument: if it cannot.
    """
    if not is_slug(slug):
        raise InvalidArgument(
            "a slug consists of 1 to 100 characters of A-Z a-z 0-9 . _ - and is neither a UUID nor . or .."
        )


def check_public_slug(slug: str) -> None:
    """Check that a slug can be the name of a public page.

    :raise InvalidArgument: if it cannot.
    """
    check_slug(slug)
    if slug.lower().endswith(".json"):
        raise InvalidArgument("the slug of a public page cannot end in .json: this is the path of its numbers as JSON")


def default_slug(name: str) -> str | None:
    """Return the slug for a name, which is the name itself; ``None`` if it cannot be a slug."""
    return name if is_slug(name) else None
