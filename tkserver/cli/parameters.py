"""Types of options and arguments."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec

from tkserver.config import origin_of
from tkserver.operations.exceptions import InvalidArgument
from tkserver.operations.names import check_name, check_public_slug, check_slug

_DURATION = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class CheckedText(click.ParamType[str]):
    """Text that an operation checks.

    :param check: raises :exc:`InvalidArgument`.
    """

    def __init__(self, name: str, check: Callable[[str], None]) -> None:
        self.name = name
        self._check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        try:
            self._check(text)
        except InvalidArgument as error:
            self.fail(str(error), param, ctx)
        return text


NAME = CheckedText("name", check_name)
SLUG = CheckedText("slug", check_slug)
PUBLIC_SLUG = CheckedText("slug", check_public_slug)


class HttpUrl(click.ParamType[str]):
    """The URL of a server."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not _is_http_url(text):
            self.fail(f"{text!r} is not a URL such as http://127.0.0.1:3000", param, ctx)
        return text


def _is_http_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    has_only_path = not (parts.query or parts.fragment or parts.username or parts.password)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and has_only_path


class Origin(click.ParamType[str]):
    """The URL of a server, without a path."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return origin_of(str(value))
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


def duration_of(text: str) -> timedelta | None:
    """Return the duration that a text such as ``7d`` represents; ``None`` if it represents none."""
    match = _DURATION.fullmatch(text)
    return None if match is None else timedelta(**{_UNITS[match[2]]: int(match[1])})


class Duration(click.ParamType[timedelta]):
    """A duration such as ``90s``, ``30m``, ``24h`` or ``7d``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        duration = duration_of(value)
        if duration is None:
            self.fail(f"{value!r} is not a duration such as 30m, 24h or 7d", param, ctx)
        return duration


class Timestamp(click.ParamType[datetime]):
    """A time in the format of RFC 3339, a date, which means midnight UTC, or how long ago it was, such as ``7d``."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            ago = duration_of(value)
            return _parse_time(value) if ago is None else datetime.now(timezone.utc) - ago
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a time such as 2026-01-31, 2026-01-31T12:00:00Z or 7d (ago)", param, ctx)


def _parse_time(text: str) -> datetime:
    if len(text) == len("2026-01-31"):
        return datetime.combine(date.fromisoformat(text), time(tzinfo=timezone.utc))
    parsed = msgspec.convert(text, datetime)
    if parsed.tzinfo is None:
        raise ValueError("no offset from UTC")
    return parsed.astimezone(timezone.utc)
