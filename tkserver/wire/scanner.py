"""A JSON scanner that accepts all well-formed JSON.

Lone surrogates and very deep nesting are valid JSON, but the decoder rejects a body that contains them. Only the
affected event must be rejected, so the scanner finds where each event begins and ends. It is much slower than the
decoder, and is used only if the decoder fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

Span = tuple[int, int]
"""Start and end of a value in the text, as for a slice."""


class Pairs(list[tuple[str, Any]]):
    """The members of an object in their order, including repeated keys."""


class Scanner:
    """Finds the spans of values in a JSON text.

    All methods raise :exc:`ValueError` if the text is not JSON. There is one exception: if a value is nested too deeply
    for the standard library, only its brackets and strings are checked.
    """

    _SPACE = re.compile(r"[ \t\n\r]*")
    _MARKS = re.compile(r'"|[\[{]+|[\]}]+')

    def __init__(self, text: str) -> None:
        self.text = text
        # Numbers are not converted: their values are not needed, and Python limits the number of digits.
        self._decoder = json.JSONDecoder(
            parse_constant=_reject_constant, parse_int=str, parse_float=str, object_pairs_hook=Pairs
        )

    def members(self) -> Iterator[tuple[str, Span]]:
        """Yield the keys of the object in the text, and the spans of their values."""
        position = self._skip("{", 0)
        while not self._at("}", position):
            if not self._at('"', position):
                raise ValueError("a key must be a string")
            key, position = self._decoder.raw_decode(self.text, position)
            start = self._skip(":", position)
            end = self._end_of_value(start)
            yield key, (start, end)
            position = self._next(end, "}")
        if self._skip("}", position) != len(self.text):
            raise ValueError("unexpected text after the object")

    def elements(self, start: int) -> Iterator[Span]:
        """Yield the spans of the elements of the array that begins at ``start``."""
        position = self._skip("[", start)
        while not self._at("]", position):
            end = self._end_of_value(position)
            yield position, end
            position = self._next(end, "]")

    def value(self) -> Any:
        """Decode the text, with numbers as strings and objects as :class:`Pairs`.

        :raise RecursionError: if the value is nested too deeply.
        """
        return self._decoder.decode(self.text)

    def _end_of_value(self, start: int) -> int:
        try:
            return self._decoder.raw_decode(self.text, start)[1]
        except RecursionError:
            return self._end_of_nested(start)

    def _end_of_nested(self, start: int) -> int:
        depth, position = 0, start
        while mark := self._MARKS.search(self.text, position):
            run, position = mark[0], mark.end()
            if run == '"':
                _, position = scanstring(self.text, position)
            elif run[0] in "[{":
                depth += len(run)
            elif len(run) >= depth:
                return mark.start() + depth
            else:
                depth -= len(run)
        raise ValueError("a bracket is not closed")

    def _next(self, end: int, closing: str) -> int:
        """Return the position of the next element, or of the closing bracket.

        :param end: end of the current element.
        """
        position = self._skip_space(end)
        if self._at(closing, position):
            return position
        position = self._skip(",", position)
        if self._at(closing, position):
            raise ValueError("trailing comma")
        return position

    def _skip(self, mark: str, position: int) -> int:
        """Return the position after a punctuation mark and the white space around it."""
        position = self._skip_space(position)
        if not self._at(mark, position):
            raise ValueError(f"{mark} expected")
        return self._skip_space(position + 1)

    def _skip_space(self, position: int) -> int:
        match = self._SPACE.match(self.text, position)
        return match.end() if match else position

    def _at(self, mark: str, position: int) -> bool:
        return self.text.startswith(mark, position)


def _reject_constant(name: str) -> None:
    """Reject NaN and infinities, which the standard library accepts but JSON does not contain."""
    raise ValueError(f"{name} is not JSON")
