"""What PostgreSQL's ``jsonb`` refuses although it is JSON.

``jsonb`` cannot hold U+0000, lone surrogates, numbers beyond ``numeric`` or very deep nesting (PostgreSQL manual,
sections 8.14 and 8.1.2). Said here for one value, before the database sees it, so that the one event is refused and
not the statement that carries it. Lone surrogates are not looked for: no text with one gets past the decoder.
"""

from __future__ import annotations

import re

MAX_DEPTH = 500
"""Levels of nesting that are taken. PostgreSQL's own limit moves with its ``max_stack_depth``; this one does not,
and lies well below both it and the decoder's."""

# numeric_in(): digits before and after the decimal point, and the largest exponent that it looks at.
_MAX_INTEGRAL_DIGITS = 131_072
_MAX_FRACTIONAL_DIGITS = 16_383
_MAX_EXPONENT = 2_147_483_647 // 2

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_SUSPICIOUS_EXPONENT = re.compile(rb"\d[eE][+\-\d]\d{3}")
_MANY_DIGITS = 15_000
_SUSPICIOUS_DIGITS = re.compile(rb"(?<!\d)\d{%d}" % _MANY_DIGITS)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NUMBER = re.compile(rb"-?(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?")
_BRACKETS = re.compile(rb"[\[{]+|[\]}]+")


def objection(text: bytes) -> str | None:
    """Why ``jsonb`` would refuse this well-formed JSON text, or ``None`` when it takes it.

    Most values hold nothing that is even suspicious, and cost a few searches in C.
    """
    if rb"\u0000" in text and _NUL.search(text):
        return "holds U+0000"
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH} levels"
    many_digits = len(text) >= _MANY_DIGITS and _SUSPICIOUS_DIGITS.search(text)
    if many_digits or _SUSPICIOUS_EXPONENT.search(text):
        return _bad_number(text)
    return None


def _depth(text: bytes) -> int:
    depth = deepest = 0
    for match in _BRACKETS.finditer(_STRING.sub(b"", text)):
        run = len(match[0])
        depth += run if match[0][0] in b"[{" else -run
        deepest = max(deepest, depth)
    return deepest


def _bad_number(text: bytes) -> str | None:
    for match in _NUMBER.finditer(_STRING.sub(b'""', text)):
        if not _fits_numeric(match[1], match[2] or b"", match[3] or b"0"):
            return "holds a number beyond what PostgreSQL's numeric can hold"
    return None


def _fits_numeric(integral: bytes, fraction: bytes, exponent_text: bytes) -> bool:
    magnitude = exponent_text.lstrip(b"+-").lstrip(b"0") or b"0"
    if len(magnitude) > 10:
        return False
    exponent = -int(magnitude) if exponent_text.startswith(b"-") else int(magnitude)
    if abs(exponent) >= _MAX_EXPONENT or len(fraction) - exponent > _MAX_FRACTIONAL_DIGITS:
        return False
    digits = (integral + fraction).lstrip(b"0")
    leading_zeros = len(integral) + len(fraction) - len(digits)
    return not digits or len(integral) - leading_zeros + exponent <= _MAX_INTEGRAL_DIGITS
