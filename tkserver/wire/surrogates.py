"""Lone surrogates in JSON texts.

JSON allows the escape ``\\ud800`` without a second half, but neither the decoder nor PostgreSQL accepts it. The decoder
rejects the whole body because of one such escape. This module replaces them, so that only the event that contains one
is rejected.
"""

from __future__ import annotations

import re
from collections.abc import Generator

_STEP_BYTES = 32_768
_STEP_RESTORED = 262_144

_ESCAPE_LENGTH = 6
_PAIR_LENGTH = 12
_PAIR_OR_LONE = re.compile(rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|[89a-fA-F][0-9a-fA-F]{2})")


def replace_lone_surrogates(text: bytes) -> Generator[None, None, tuple[bytes, bytes] | None]:
    """Replace each lone surrogate in a JSON text by the escape of another character.

    This is a generator, so that a long text can be searched in steps. It yields nothing.

    :return: two variants of the text, which differ in exactly the replaced escapes; ``None`` if there are none. Fields
        that have the same value in both variants contain no lone surrogate. See also :func:`restore`.
    """
    first = second = bytearray()
    position = previous_end = 0
    while position < len(text):
        end = position + _STEP_BYTES
        for match in _PAIR_OR_LONE.finditer(text, position, end + _PAIR_LENGTH - 1):
            start = match.start()
            if start >= end:
                break
            between, previous_end = text[previous_end:start], match.end()
            # The first escape is not one if its backslash is escaped by another one.
            if between.endswith(b"\\") and _ends_with_odd_backslashes(between):
                start += _ESCAPE_LENGTH
            if previous_end - start == _ESCAPE_LENGTH:
                if not first:
                    first = bytearray(text)
                    yield
                    second = bytearray(text)
                    yield
                # The first hexadecimal digit changes from d to e or f, in the same case.
                first[start + 2] += 1
                second[start + 2] += 2
        position = max(end, previous_end)
        yield
    if not first:
        return None
    variant = bytes(first)
    yield
    return variant, bytes(second)


def _ends_with_odd_backslashes(text: bytes) -> bool:
    return (len(text) - len(text.rstrip(b"\\"))) % 2 == 1


def restore_in_steps(first: bytes, second: bytes) -> Generator[None, None, bytes]:
    """Do the same as :func:`restore` for a long text."""
    originals = []
    for start in range(0, len(first), _STEP_RESTORED):
        end = start + _STEP_RESTORED
        originals.append(restore(first[start:end], second[start:end]))
        yield
    return b"".join(originals)


def restore(first: bytes, second: bytes) -> bytes:
    """Return the original text of two variants, or of the same part of two variants."""
    if first == second:
        return first
    # The codes of the letters d, e and f differ only in their last two bits: 00, 01 and 10. Arithmetic on long integers
    # is much faster than a loop over the bytes.
    first_number, second_number = int.from_bytes(first, "little"), int.from_bytes(second, "little")
    difference = first_number ^ second_number
    last_bits = difference & (difference >> 1)
    return (first_number ^ last_bits).to_bytes(len(first), "little")
