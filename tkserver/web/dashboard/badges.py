"""Badges for READMEs: as SVG, and in the endpoint format of shields.io. Pure logic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import escape

from tkserver.insight.facts import clean

BADGE_DAYS = "30d"
"""The period of all badges."""

MAX_MESSAGE = 40
"""Characters of a message."""

LABEL_COLOUR = "#555"
COLOURS = {"blue": "#0b6cb0", "lightgrey": "#6b6b6b"}
"""White text is readable on all of them."""

HEIGHT = 20
PADDING = 6
"""Pixels on both sides of a text."""

_WIDTHS = {**dict.fromkeys("fijlrtI.,:;!|'()[] /-", 4.2), **dict.fromkeys("mwMW@%", 10.5)}
_UPPER_WIDTH, _OTHER_WIDTH, _WIDE_WIDTH = 8.0, 7.0, 12.0
"""Pixels of characters in Verdana with 11 px, about. Texts are stretched to the estimated width in other fonts."""

_UNITS = ((10**9, "G"), (10**6, "M"), (10**3, "k"))


@dataclass(frozen=True)
class Badge:
    """What a badge says.

    :ivar is_known: false if there are too few users.
    """

    label: str
    message: str
    is_known: bool = True

    @property
    def colour(self) -> str:
        """The name of the colour of the message."""
        return "blue" if self.is_known else "lightgrey"


def badge(name: str, numbers: Mapping[str, Mapping[str, Any]]) -> Badge:
    """Return a badge.

    :param name: one of :data:`BADGES`.
    :param numbers: see :func:`tkserver.insight.public_numbers.public_numbers`.
    """
    value = numbers[BADGES[name]][BADGE_DAYS]
    if name != "version":
        message = "too few users" if value is None else f"{compact(value)}+ / 30 days"
        return Badge(name, message, value is not None)
    newest = next(iter(value), None)
    return Badge(name, "too few users" if newest is None else clean(newest)[:MAX_MESSAGE], newest is not None)


BADGES = {"users": "users", "runs": "runs", "version": "versions"}
"""The badges, each with its category. ``version`` is the newest version that enough users have."""


def compact(number: int) -> str:
    """Return a number with two significant digits, rounded down, such as ``1.2k``."""
    for size, unit in _UNITS:
        if number >= size:
            tenths = number * 10 // size
            return f"{tenths // 10}.{tenths % 10}{unit}" if tenths < 100 else f"{tenths // 10}{unit}"
    return str(number)


def shields_badge(shown: Badge, cache_seconds: int) -> dict[str, object]:
    """Return a badge in the endpoint format of shields.io, version 1."""
    content = {"label": shown.label, "message": shown.message, "color": shown.colour}
    return {"schemaVersion": 1, **content, "cacheSeconds": cache_seconds}


def svg_badge(shown: Badge) -> str:
    """Return a badge as SVG. It needs no styles, which the pages that show it may forbid."""
    label_width, message_width = (round(text_width(text)) + 2 * PADDING for text in (shown.label, shown.message))
    width, colour = label_width + message_width, COLOURS[shown.colour]
    title = escape(f"{shown.label}: {shown.message}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}" role="img" aria-label="{title}">'
        f"<title>{title}</title>"
        f'<clipPath id="r"><rect width="{width}" height="{HEIGHT}" rx="3"/></clipPath><g clip-path="url(#r)">'
        f'<rect width="{label_width}" height="{HEIGHT}" fill="{LABEL_COLOUR}"/>'
        f'<rect x="{label_width}" width="{message_width}" height="{HEIGHT}" fill="{colour}"/></g>'
        '<g fill="#fff" font-family="Verdana,Geneva,DejaVu Sans,sans-serif" font-size="11">'
        f"{_text(shown.label, PADDING)}{_text(shown.message, label_width + PADDING)}</g></svg>"
    )


def text_width(text: str) -> float:
    """Return the width of a text in pixels, about."""
    return sum(map(_character_width, text))


def _character_width(character: str) -> float:
    if not character.isascii():
        return _WIDE_WIDTH
    return _WIDTHS.get(character, _UPPER_WIDTH if character.isupper() else _OTHER_WIDTH)


def _text(text: str, x: int) -> str:
    return f'<text x="{x}" y="14" textLength="{round(text_width(text))}">{escape(text)}</text>'
