"""Recipes of request bodies that may be expensive: kinds of bodies, and random mutations of them."""

from __future__ import annotations

import gzip
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any

from bench.requests import new_bodies

SLOT = b"@@"
"""The place in a template where something is inserted."""

NUMBER = b"<n>"
"""The place in a value where a number is inserted, so that all values are different."""

MAX_EVENTS = 1000

_START, _END = b'{"events":[', b"]}"
ORDINARY_BATCH = next(new_bodies(1, 100))
ORDINARY_EVENT = next(new_bodies(1, 1)).removeprefix(_START).removesuffix(_END)
_WITH_DATA = re.sub(rb'"data":\{.*?\}', b'"data":[@@]', ORDINARY_EVENT)
_WITH_MEMBER = ORDINARY_EVENT[:-1] + b",@@}"

IDENTITY, GZIP, SMALL_MEMBERS, EMPTY_MEMBERS = "identity", "gzip", "gzip, 1 byte a member", "gzip, empty members"


@dataclass(frozen=True)
class Recipe:
    """A body: values in events in a body.

    :ivar value: JSON, or a part of it.
    :ivar event: a template. Its slot contains ``values`` values.
    :ivar body: a template. Its slot contains ``events`` events.
    :ivar depth: the number of nested arrays after the values.
    :ivar end: replaces the last bytes of the body.
    :ivar encoding: how the body is sent.
    """

    value: bytes
    event: bytes = SLOT
    body: bytes = _START + SLOT + _END
    values: int = 1
    events: int = 1
    separator: bytes = b","
    depth: int = 0
    end: bytes = b""
    encoding: str = IDENTITY

    def __str__(self) -> str:
        """Return a description for a table."""
        return (
            f"{self.events} x {_shorten(self.event.replace(ORDINARY_EVENT[:400], b'...'))}, "
            f"{self.values} x {_shorten(self.value)}"
            + (f", depth {self.depth}" if self.depth else "")
            + (f", ending {_shorten(self.end)}" if self.end else "")
            + (f", {self.encoding}" if self.encoding != IDENTITY else "")
        )

    def build(self, max_bytes: int) -> bytes:
        """Return the body as it is sent.

        :param max_bytes: its maximum length, before and after compression, unless a single value is longer. Events and
            values that do not fit are left out.
        """
        return _ENCODERS[self.encoding](self._plain(max_bytes), max_bytes)

    def _plain(self, max_bytes: int) -> bytes:
        room = max_bytes - len(self.body)
        value, overhead = len(self.value) + len(self.separator) or 1, len(self.event) + 2 * self.depth + 1
        events = min(self.events, room // (overhead + value)) or 1
        values = min(self.values, (room // events - overhead) // value) or 1
        numbers = map(b"%d".__mod__, itertools.count(100))
        text = b",".join([self.event.replace(SLOT, self._repeat_value(values, numbers)) for _ in range(events)])
        body = self.body.replace(SLOT, text)
        return body[: len(body) - len(self.end)] + self.end

    def _repeat_value(self, count: int, numbers: Iterator[bytes]) -> bytes:
        nested = b"[" * self.depth + b"]" * self.depth
        values = [self.value] * count
        if NUMBER in self.value:
            values = [value.replace(NUMBER, number) for value, number in zip(values, numbers, strict=False)]
        return self.separator.join([*values, nested] if nested else values)


def _shorten(text: bytes) -> str:
    printable = ascii(text.decode("latin-1"))[1:-1]
    return printable if len(printable) <= 60 else f"{printable[:28]}...{printable[-28:]}"


# --- compression

_compress_byte = cache(lambda value: gzip.compress(bytes([value]), mtime=0))


def _small_members(plain: bytes, max_bytes: int) -> bytes:
    return b"".join(map(_compress_byte, plain[: max_bytes // len(_compress_byte(0))]))


def _empty_members(plain: bytes, max_bytes: int) -> bytes:
    empty, full = gzip.compress(b"", mtime=0), gzip.compress(plain, 1, mtime=0)
    return empty * ((max_bytes - len(full)) // len(empty)) + full


_ENCODERS: dict[str, Callable[[bytes, int], bytes]] = {
    IDENTITY: lambda plain, _: plain,
    GZIP: lambda plain, _: gzip.compress(plain, 1, mtime=0),
    SMALL_MEMBERS: _small_members,
    EMPTY_MEMBERS: _empty_members,
}


# --- kinds


@dataclass(frozen=True)
class Kind:
    """Recipes that differ only in values, numbers, end and compression.

    :ivar values: JSON, or parts of it, that a mutation can choose from.
    """

    recipe: Recipe
    values: tuple[bytes, ...] = ()

    def mutate(self, recipe: Recipe, random: Random) -> Recipe:
        """Return a recipe that differs from another one of this kind in one or more respects."""
        for _ in range(random.choice((1, 1, 2, 3))):
            recipe = random.choice(_MUTATIONS)(self, recipe, random)
        return recipe


def _change_value(kind: Kind, recipe: Recipe, random: Random) -> Recipe:
    return replace(recipe, value=random.choice(kind.values)) if kind.values else recipe


def _join_values(kind: Kind, recipe: Recipe, random: Random) -> Recipe:
    if not kind.values or len(recipe.value) > 200:
        return recipe
    return replace(recipe, value=recipe.value + recipe.separator + random.choice(kind.values))


def _edit_value(_: Kind, recipe: Recipe, random: Random) -> Recipe:
    """Insert or remove a byte of the value."""
    position = random.randrange(len(recipe.value) + 1)
    inserted = random.choice((b"", b"0", b" ", b"e", b"\\", b"\\\\", b'"', b"[", b"{", b":", NUMBER))
    rest = recipe.value[position + (not inserted) :]
    return replace(recipe, value=recipe.value[:position] + inserted + rest)


def _scale(name: str, limit: int) -> Callable[[Kind, Recipe, Random], Recipe]:
    """Return a mutation that multiplies a number."""

    def mutate(_: Kind, recipe: Recipe, random: Random) -> Recipe:
        scaled = int(getattr(recipe, name) * random.choice((0.1, 0.5, 0.9, 1.1, 2, 10))) + random.choice((0, 1))
        changes: dict[str, Any] = {name: min(max(scaled, 1), limit)}
        return replace(recipe, **changes)

    return mutate


def _change_end(_: Kind, recipe: Recipe, random: Random) -> Recipe:
    return replace(recipe, end=random.choice(_ENDS))


def _change_encoding(_: Kind, recipe: Recipe, random: Random) -> Recipe:
    plain = recipe.encoding in (IDENTITY, GZIP)
    return replace(recipe, encoding=random.choice((IDENTITY, GZIP))) if plain else recipe


def _change_depth(_: Kind, recipe: Recipe, random: Random) -> Recipe:
    return replace(recipe, depth=random.choice((0, 0, 1, 10, 100, 300, 500, 2000)))


_MUTATIONS: tuple[Callable[[Kind, Recipe, Random], Recipe], ...] = (
    _change_value,
    _join_values,
    _edit_value,
    _scale("values", 10_000_000),
    _scale("events", 1100),
    _change_end,
    _change_encoding,
    _change_depth,
)

_ENDS = (b"", b"", b"]", b'],"x":1}', rb'],"x":"\ud800"}', b"\xff", rb',"\ud800"]}', b"\xc3\xa9")


def _in_data(*values: bytes, events: int = 50) -> Kind:
    """Return the kind of bodies in which a value is repeated in the data of events."""
    longest_data = 100_000
    return Kind(Recipe(values[0], _WITH_DATA, values=longest_data // (len(values[0]) + 1), events=events), values)


def _tiny_events(*values: bytes) -> Kind:
    return Kind(Recipe(values[0], events=1000), values)


def _members_of_events(*values: bytes, events: int = 1000) -> Kind:
    """Return the kind of bodies in whose events a member is repeated."""
    return Kind(Recipe(values[0], _WITH_MEMBER, events=events), values)


def _members_of_body(*values: bytes) -> Kind:
    recipe = Recipe(values[0], body=b"{@@," + _START[1:] + ORDINARY_EVENT + _END, values=300_000)
    return Kind(recipe, values)


def _invalid_events() -> Iterator[bytes]:
    """Yield events in which one value is missing or has another type."""
    for match in re.finditer(rb'("\w+":)("[^"]*"|[0-9]+|false|[{])', ORDINARY_EVENT):
        before, after = ORDINARY_EVENT[: match.start()], ORDINARY_EVENT[match.end() :]
        for value in (b'""', b'"<n>"', b"<n>", b"null", b"[]", b"1e999"):
            yield before + match[1] + (value + b',"x":{' if match[2] == b"{" else value) + after
        yield before + b'"x":' + match[2] + after


def _events_with_times() -> Iterator[bytes]:
    for fraction in (b".1234567", b".9999999999999999", b".1234567890" * 10, b".\\u003123456789"):
        yield ORDINARY_EVENT.replace(b".678901", fraction)


KINDS: dict[str, Kind] = {
    "events that are not objects": _tiny_events(b"1", b"[]", b'""', b"null", b"true", b'"<n>"', b"<n>", b"[<n>]"),
    "empty events": _tiny_events(b"{}", b"{ }", b'{"":1}', b'{"":<n>}', b'{"a":<n>}', b'{"<n>":1}', b'{"a":[]}'),
    "events with one field": _tiny_events(
        *(
            b'{"%s":%s}' % (name, value)
            for name in (b"event", b"event_id", b"schema_version", b"service", b"timestamp", b"user_id", b"metadata")
            for value in (
                b"<n>",
                b'"<n>"',
                b"{}",
                b"[]",
                b"null",
                b'"1.<n>"',
                b'"2.<n>"',
                b'"\\u00<n>"',
                b'"1:00.<n>00"',
            )
        ),
        b'{"event_id":"00000000-0000-4000-8000-000000000<n>"}',
        b'{"event_id":"00000000-0000-4000-8000-000000000<n>","schema_version":"2"}',
    ),
    "events with wrong values": _tiny_events(*_invalid_events()),
    "tiny events and a surrogate": Kind(
        Recipe(b"{}", events=999, end=rb',"\ud800"]}'),
        (b"1", b"{}", b'"\\ud800"', b'{"":<n>}', b'{"event":<n>}', b'{"event_id":"\\ud800"}', b'"\\ud83d\\ude00"'),
    ),
    "ordinary events": Kind(Recipe(ORDINARY_EVENT, events=1000), (ORDINARY_EVENT, *_events_with_times())),
    "long fractions of seconds": _tiny_events(*_events_with_times()),
    "empty lists": _in_data(b"[]", b"[[]]", b"[[],[]]"),
    "empty objects": _in_data(b"{}", b"[{}]", b'{"":{}}'),
    "empty objects and depth": Kind(Recipe(b"{}", _WITH_DATA, values=32_000, events=51, depth=2000), (b"{}", b"[]")),
    "depth": Kind(Recipe(b"[[[[[]]]]]", _WITH_DATA, values=1, events=200, depth=300)),
    "brackets": Kind(Recipe(b"[", body=SLOT, values=100_000, separator=b""), (b"[", b"{", b'{"":', b'{"events":[')),
    "one event with empty lists": _in_data(b"[]", events=1),
    "strings": _in_data(b'""', b'"x"', b'"\\n"', b'"\\u0041"', b'"\\\\"', b'"<n>"'),
    "long strings": _in_data(
        b'"' + b"x" * 50_000 + b'"', b'"' + b"\\n" * 25_000 + b'"', b'"' + b"\\\\" * 25_000 + b'"'
    ),
    "characters that are not ASCII": _in_data('"é"'.encode(), '"€"'.encode(), '"\U0001f600"'.encode(), b'"\xc3"'),
    "U+0000": _in_data(
        b'"\\\\u0000"', b'"\\\\\\\\u0000"', b'"\\u0000"', b'"\\u0001"', b'"' + b"\\\\" * 9000 + b'u0000"'
    ),
    "surrogates": _in_data(b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\udfff\\ud800"', b'"\\\\ud800"', b'"\\\\\\ud800"'),
    "one event with surrogates": _in_data(b'"\\ud800"', b'"\\ud83d\\ude00"', events=1),
    "ignored surrogates": _members_of_events(b'"x":"\\ud800"', b'"\\ud800":<n>', b'"x":"\\ud800","x":"\\udfff"'),
    "exponents": _in_data(
        b"1e100", b"1e-399", b"1e<n>", b"1E+100", b"0e300", b"1.5e200", b"0.00001e305", b"1e-0000000000<n>"
    ),
    "many digits": _in_data(b"9" * 300, b"9" * 299, b"9" * 400, b"0." + b"0" * 400, b"1e100," + b"9" * 300),
    "literals": _in_data(b"1", b"null", b"true", b"-1", b"0.5", b"<n>"),
    "keys": _in_data(b'{"a":1}', b'{"<n>":1}', b'{"a":1,"a":1,"a":1}', b'{"' + b"k" * 5000 + b'":1}'),
    "unknown keys of events": _members_of_events(b'"a":1', b'"<n>":1', b'"":[]', b'"' + b"k" * 5000 + b'":1'),
    "repeated fields": _members_of_events(
        b'"event_id":"00000000-0000-4000-8000-000000000<n>"',
        b'"service":{"name":"","version":1}',
        b'"event":{"type":"a","data":<n>}',
        b'"user_id":"anon_<n>"',
        b'"timestamp":"2026-01-02T03:04:05.678901Z"',
        b'"schema_version":"2.<n>"',
    ),
    "repeated events": _members_of_body(b'"events":[]', b'"events":1', b'"\\u0065vents":[]', b'"events":[[]]'),
    "unknown keys of the body": _members_of_body(b'"a":1', b'"<n>":1', b'"":[]', b'"x":{"y":[]}', b'"event":1'),
    "large events": Kind(Recipe(b"[]", _WITH_DATA, values=40_000, events=100), (b"[]", b'"\\ud800"', b"1e100", b'""')),
    "too many events": Kind(Recipe(b"1", values=1_000_000), (b"1", b"{}", b"[]", b'""', b'"\\ud800"')),
    "white space": Kind(Recipe(b" ", values=1_000_000, separator=b""), (b" ", b"\n", b"\t  ")),
    "invalid at the last byte": Kind(
        Recipe(b"[]", _WITH_DATA, values=33_000, events=50, end=b"x"),
        (b"[]", b"{}", b'""', b'"\\ud83d\\ude00"', b"1e100"),
    ),
    "invalid UTF-8 at the last byte": Kind(
        Recipe('"é"'.encode(), _WITH_DATA, values=20_000, events=50, end=b"\xff"),
        ('"é"'.encode(), '"\U0001f600"'.encode()),
    ),
    "gzip bomb": Kind(Recipe(b"[],", _WITH_DATA, events=1100, values=1_000_000, encoding=GZIP), (b"[]", b" ", b"{}")),
    "gzip members of one byte": Kind(
        Recipe(ORDINARY_EVENT, events=20, encoding=SMALL_MEMBERS), (ORDINARY_EVENT, b"{}")
    ),
    "empty gzip members": Kind(Recipe(ORDINARY_EVENT, encoding=EMPTY_MEMBERS), (ORDINARY_EVENT, b"{}")),
}
"""All kinds, by their names."""
