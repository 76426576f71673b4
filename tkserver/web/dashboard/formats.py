"""Numbers and times in the reader's language. Pure logic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from zoneinfo import ZoneInfo

SEPARATORS: Mapping[str, tuple[str, str]] = {
    "en": (",", "."),
    **dict.fromkeys(("da", "de", "el", "es", "id", "it", "nl", "pt", "tr", "vi", "ro", "hr", "sl"), (".", ",")),
    **dict.fromkeys(("bg", "cs", "fi", "fr", "hu", "nb", "nn", "no", "pl", "ru", "sk", "sv", "uk"), ("\u202f", ",")),
    **dict.fromkeys(("ja", "ko", "th", "zh", "he", "hi"), (",", ".")),
    "de-ch": ("\u2019", "."),
    "es-mx": (",", "."),
}
"""The separators of thousands and of decimals by language (Unicode CLDR)."""

_LANGUAGE = re.compile(r"([a-z]{2,3})(?:-([a-z0-9]{2,8}))?", re.IGNORECASE)

_UNITS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s"))
_SIZES = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Formats:
    """Formats of a language.

    :ivar thousands: the separator of groups of three digits.
    :ivar decimal: the separator of decimals.
    """

    thousands: str = ","
    decimal: str = "."

    @classmethod
    def for_languages(cls, accepted: str | None) -> Formats:
        """Return the formats of the first known language.

        :param accepted: the ``Accept-Language`` header, if sent. Clients list the preferred language first.
        """
        for part in (accepted or "").split(",")[:20]:
            match = _LANGUAGE.match(part.strip())
            if match is None:
                continue
            language, region = match[1].lower(), (match[2] or "").lower()
            found = SEPARATORS.get(f"{language}-{region}") or SEPARATORS.get(language)
            if found:
                return cls(*found)
        return cls()

    def number(self, value: float | None, decimals: int = 0) -> str:
        """Return a number, or a dash if there is none."""
        if value is None:
            return "-"
        text = f"{value:,.{decimals}f}"
        return text.translate({ord(","): self.thousands, ord("."): self.decimal})

    def percent(self, share: float | None) -> str:
        """Return a share as a percentage with one decimal."""
        return "-" if share is None else f"{self.number(share * 100, 1)}\u00a0%"

    def change(self, now: float | None, before: float | None) -> str:
        """Return by how much a number has changed, with a sign; empty if that cannot be said."""
        if now is None or not before:
            return ""
        change = now / before - 1
        sign = "+" if change > 0 else "\u2212" if change < 0 else "±"
        return f"{sign}{self.number(abs(change) * 100, 1 if abs(change) < 0.1 else 0)}\u00a0%"

    def duration(self, milliseconds: float | None) -> str:
        """Return a duration with about two significant digits."""
        if milliseconds is None:
            return "-"
        for size, unit in _UNITS:
            if milliseconds >= size:
                value = milliseconds / size
                return f"{self.number(value, 1 if value < 10 else 0)}\u00a0{unit}"
        return f"{self.number(milliseconds, 1 if milliseconds < 10 else 0)}\u00a0ms"

    def moment(self, time: datetime | None, timezone: str) -> str:
        """Return a time in a time zone, to the minute, or a dash if there is none."""
        return "-" if time is None else time.astimezone(ZoneInfo(timezone)).strftime("%Y-%m-%d %H:%M")

    def size(self, count: float) -> str:
        """Return a number of bytes with a unit."""
        unit = 0
        while count >= 1000 and unit < len(_SIZES) - 1:
            count, unit = count / 1000, unit + 1
        return f"{self.number(count, 1 if unit and count < 10 else 0)}\u00a0{_SIZES[unit]}"


def utc(time: datetime) -> str:
    """Return a time in UTC, to the minute."""
    return time.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
