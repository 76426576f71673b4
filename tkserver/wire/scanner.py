"""A second, more lenient look at JSON that the decoder cannot take.

Lone surrogates and very deep nesting are JSON, though neither the decoder nor PostgreSQL holds them. One event with
such a thing is to be refused alone, so the bounds of its neighbours must be found all the same. This scanner is many
times slower than the decoder and is asked only after that has failed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

Span = tuple[int, int]
"""Where a value begins, and the position after it."""


class Pairs(list[tuple[str, Any]]):
    """The members of an object, those included whose key stands twice."""


class Scanner:
    """Finds the bounds of values in a JSON text.

    Methods that read raise :exc:`ValueError` where the text is no JSON. What lies within a value that is nested too
    deeply for the standard library is the exception: only its brackets are looked at.
    """

    _SPACE = re.compile(r"[ \t\n\r]*")
    _MARKS = re.compile(r'"|[\[{]+|[\]}]+')

    def __init__(self, text: str) -> None:
        self.text = text
        # Numbers stay text: nobody asks for their values, and the longest ones cannot be converted.
        self._decoder = json.JSONDecoder(
            parse_constant=_refuse_constant, parse_int=str, parse_float=str, object_pairs_hook=Pairs
        )

    def members(self) -> Iterator[tuple[str, Span]]:
        """The keys of the object that the whole text is, and the bounds of their values."""
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
            raise ValueError("something follows the object")

    def elements(self, start: int) -> Iterator[Span]:
        """The bounds of the elements of the array that begins at ``start``."""
        position = self._skip("[", start)
        while not self._at("]", position):
            end = self._end_of_value(position)
            yield position, end
            position = self._next(end, "]")

    def value(self) -> Any:
        """The whole text as a value, with numbers as text and objects as :class:`Pairs`.

        :raise RecursionError: when it is nested too deeply.
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
        raise ValueError("a bracket is never closed")

    def _next(self, end: int, closing: str) -> int:
        """From the end of an element to the next one, or to the bracket that closes the last."""
        position = self._skip_space(end)
        if self._at(closing, position):
            return position
        position = self._skip(",", position)
        if self._at(closing, position):
            raise ValueError("a comma with nothing behind it")
        return position

    def _skip(self, mark: str, position: int) -> int:
        position = self._skip_space(position)
        if not self._at(mark, position):
            raise ValueError(f"{mark} expected")
        return self._skip_space(position + 1)

    def _skip_space(self, position: int) -> int:
        match = self._SPACE.match(self.text, position)
        return match.end() if match else position

    def _at(self, mark: str, position: int) -> bool:
        return self.text.startswith(mark, position)


def _refuse_constant(name: str) -> None:
    """The standard library takes NaN and the infinities; JSON has none."""
    raise ValueError(f"{name} is no JSON")
