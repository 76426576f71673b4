"""JSON, events and bodies as Hypothesis makes them up: the ordinary ones, those at the limits and those beyond."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tests.support.events import MISSING, make_event

# The same examples in each run, however slow the machine is: what fails once fails again.
thorough = settings(deadline=None, derandomize=True, max_examples=200)

TEXT_LIMITS = {
    "schema_version": 20,
    "service.name": 255,
    "service.version": 100,
    "service.language": 50,
    "service.language_version": 50,
    "user_id": 255,
    "session_id": 255,
    "environment.os": 50,
    "environment.os_version": 100,
    "environment.arch": 50,
    "environment.shell": 50,
    "event.type": 100,
    "event.category": 50,
    "metadata.sdk_version": 50,
}
"""The most characters that each text of an event may have, by its path."""

PREFIXES = {"schema_version": "1.", "user_id": "client_"}
"""What the value of a text must begin with, where there is such a rule."""

OPTIONAL = (
    "service.language_version",
    "session_id",
    "environment.os_version",
    "environment.arch",
    "environment.ci",
    "environment.shell",
    "event.category",
)
"""The paths that may be absent or null."""

TIMES = ("timestamp", "metadata.transmission_timestamp")
COUNTS = ("metadata.batch_size", "metadata.retry_count")
PARTS = ("service", "environment", "event", "metadata")
"""The paths whose values are times, counts and objects."""

MAX_COUNT = 2_147_483_647


def changed(path: str, value: Any) -> dict[str, Any]:
    """A valid event but for the value at this path."""
    return make_event(**{path.replace(".", "__"): value})


def long_text(path: str, length: int, character: str = "x") -> str:
    """A text of so many characters that begins as the one at this path must."""
    prefix = PREFIXES.get(path, "")
    return prefix + character * (length - len(prefix))


# --- texts of JSON

_SPACE = st.text(" \t\r\n", max_size=2)
_LITERAL = st.sampled_from(["null", "true", "false"])
_PLAIN = st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs"], exclude_characters='"\\'), max_size=8)
_ESCAPE = st.sampled_from(
    [r"\"", r"\\", r"\/", r"\b", r"\f", r"\n", r"\r", r"\t", r"\u0041", r"\u001F", r"\ud83d\ude00", r"\\u0000", r"\\\\"]
)
_NUL = st.sampled_from([r"\u0000", r"\\\u0000", r"\u0000\u0000"])
_LONE_SURROGATE = st.sampled_from([r"\ud800", r"\udfff", r"\udc00\ud800", r"\uD83Dx", r"\udbff\n"])
_EDGES_OF_NUMERIC = (4_300, 4_301, 14_999, 15_000, 16_383, 16_384, 131_071, 131_072, 131_073)


def string_texts(*, surrogates: bool = True) -> SearchStrategy[str]:
    """Strings with every kind of escape.

    :param surrogates: lone ones too.
    """
    # Most strings hold nothing that is refused; otherwise hardly any value of several strings would be taken.
    harmless = st.lists(_PLAIN | _ESCAPE, max_size=4)
    nasty = st.lists(_PLAIN | _ESCAPE | _NUL, max_size=4)
    with_surrogates = st.lists(_PLAIN | _ESCAPE | _LONE_SURROGATE, max_size=4)
    pieces = st.one_of(harmless, harmless, harmless, with_surrogates if surrogates else nasty, nasty)
    return pieces.map(lambda parts: '"' + "".join(parts) + '"')


_SHORT_DIGITS = st.integers(0, 10**20).map(str)
_LONG_DIGITS = st.builds(
    lambda first, rest, length: first + rest * (length - 1),
    st.sampled_from("19"),
    st.sampled_from("09"),
    st.sampled_from(_EDGES_OF_NUMERIC),
)
_LONG_FRACTION = st.builds(
    lambda digit, length, last: digit * (length - 1) + last,
    st.sampled_from("09"),
    st.sampled_from(_EDGES_OF_NUMERIC[2:6]),
    st.sampled_from("05"),
)
_EXPONENT = st.builds(
    "".join,
    st.tuples(
        st.sampled_from("eE"),
        st.sampled_from(["", "+", "-"]),
        st.sampled_from(["", "", "", "0", "0" * 20]),
        st.integers(0, 400).map(str)
        | st.sampled_from(["16383", "16384", "131071", "131072", "147455", "999999", "99999999999999"]),
    ),
)


def number_texts() -> SearchStrategy[str]:
    """Numbers of any size: those that a double can hold, and those at and beyond the edges of ``numeric``."""
    short = st.builds("".join, st.tuples(st.sampled_from(["", "-"]), _SHORT_DIGITS))
    decimal = st.builds("{}.{}".format, short, _SHORT_DIGITS)
    scientific = st.builds("{}{}".format, short | decimal, _EXPONENT)
    long = st.builds(
        "".join,
        st.tuples(
            st.sampled_from(["", "-"]),
            _LONG_DIGITS | _SHORT_DIGITS,
            st.just("") | _LONG_FRACTION.map(".{}".format),
            st.just("") | _EXPONENT,
        ),
    )
    return st.one_of(short, decimal, scientific, long)


def nested(depth: int, inner: str = "", bracket: str = "[") -> str:
    """Arrays or objects within each other, so many levels deep."""
    opening, closing = ("[", "]") if bracket == "[" else ('{"a":', "}")
    return opening * depth + (inner or ("0" if bracket == "{" else "")) + closing * depth


def _arrays(values: SearchStrategy[str]) -> SearchStrategy[str]:
    elements = st.tuples(_SPACE, values, _SPACE).map("".join)
    return st.lists(elements, max_size=4).map(",".join).map("[{}]".format)


def _objects(keys: SearchStrategy[str], values: SearchStrategy[str]) -> SearchStrategy[str]:
    members = st.tuples(_SPACE, keys, _SPACE, st.just(":"), _SPACE, values, _SPACE).map("".join)
    return st.lists(members, max_size=4).map(",".join).map("{{{}}}".format)


_DEPTHS = st.sampled_from([2, 400, 499, 500, 501, 20_000])


@cache  # it takes far longer to make than an example does
def json_texts(*, surrogates: bool = True) -> SearchStrategy[str]:
    """Any JSON value: with every escape, with white space, huge numbers, and nesting of up to 20 000 levels.

    :param surrogates: lone ones too.
    """
    strings = string_texts(surrogates=surrogates)
    values = st.recursive(
        st.one_of(_LITERAL, st.integers().map(str), number_texts(), strings),
        lambda inner: _arrays(inner) | _objects(strings, inner),
        max_leaves=8,
    )
    return st.one_of(values, values, values, values, st.builds(nested, _DEPTHS, values, st.sampled_from("[{")))


def is_shallow(text: str) -> bool:
    """Whether every decoder has room for what is nested here."""
    return text.count("[") + text.count("{") < 300


def is_well_formed(text: str) -> bool:
    """Whether the standard library takes a text of moderate depth for JSON (RFC 8259, without its extensions)."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        # Digits are left alone, for the standard library does not convert more than 4300 of them.
        json.loads(text, parse_constant=refuse, parse_int=str, parse_float=str)
    except ValueError:
        return False
    return True


_NOISE = st.text('{}[]",:\\u0d8e1.- \n\x00Na', max_size=3)


@st.composite
def damaged(draw: DrawFn, texts: SearchStrategy[str]) -> str:
    """Texts in which something is missing, doubled or out of place."""
    text = draw(texts)
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 3)) | st.just(len(text)))
    return text[:start] + draw(_NOISE) + text[end:]


# --- events

_CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
_OFFSETS = st.integers(-(24 * 60 - 1), 24 * 60 - 1).map(lambda minutes: timezone(timedelta(minutes=minutes)))
_DAY = timedelta(days=1)
_MOMENTS = st.datetimes(datetime.min + _DAY, datetime.max - _DAY)


@st.composite
def _texts(draw: DrawFn, path: str) -> str:
    prefix = PREFIXES.get(path, "")
    room = TEXT_LIMITS[path] - len(prefix)
    any_length = st.text(_CHARACTERS, min_size=0 if prefix else 1, max_size=room)
    at_the_limit = _CHARACTERS.map(lambda character: character * room)
    return prefix + draw(any_length | at_the_limit)


_TIMES = st.one_of(
    st.builds(lambda moment, offset: moment.replace(tzinfo=offset).isoformat(), _MOMENTS, _OFFSETS),
    _MOMENTS.map(lambda moment: moment.isoformat() + "Z"),
    _MOMENTS.map(lambda moment: moment.isoformat().lower() + "z"),
)

_VALID_VALUES: dict[str, SearchStrategy[Any]] = {
    **{path: _texts(path) for path in TEXT_LIMITS},
    **dict.fromkeys(TIMES, _TIMES),
    **dict.fromkeys(COUNTS, st.integers(0, MAX_COUNT) | st.sampled_from([0, MAX_COUNT])),
    "event_id": st.uuids().map(str) | st.uuids().map(lambda value: str(value).upper()),
    "environment.ci": st.booleans(),
}


def _choices(path: str) -> SearchStrategy[Any]:
    left_out = st.sampled_from([None, MISSING]) if path in OPTIONAL else st.nothing()
    return _VALID_VALUES[path] | left_out


# Strategies are made once only, since that takes far longer than to draw from them.
_CHOICES = {path: _choices(path) for path in _VALID_VALUES}
_SOME_PATHS = st.lists(st.sampled_from(sorted(_VALID_VALUES.keys() - {"event_id"})), unique=True, max_size=8)
_SOME_PARTS = st.lists(st.sampled_from(["", *(f"{part}__" for part in PARTS)]), max_size=2)
_SURPLUS = st.none() | st.integers() | st.text(_CHARACTERS, max_size=5)


@st.composite
def events(draw: DrawFn) -> dict[str, Any]:
    """Valid events, often at a limit, with optional keys left out or null, and keys that mean nothing."""
    overrides = {path.replace(".", "__"): draw(_CHOICES[path]) for path in ["event_id", *draw(_SOME_PATHS)]}
    surplus = {f"{part}surplus": draw(_SURPLUS) for part in draw(_SOME_PARTS)}
    return make_event(**overrides, **surplus)


_WRONG_TYPE: dict[str, SearchStrategy[Any]] = {
    "object": st.dictionaries(st.text("ab"), st.integers(), max_size=2),
    "array": st.lists(st.integers(), max_size=2),
    "string": st.just("words"),
    "integer": st.integers(),
    "fraction": st.floats(allow_nan=False, allow_infinity=False).map(lambda number: int(number) % 1000 + 0.5),
    "boolean": st.booleans(),
    "null": st.none(),
}


def _values_of_other_types(path: str) -> SearchStrategy[Any]:
    fitting = {"string"}
    if path in PARTS:
        fitting = {"object"}
    elif path in COUNTS:
        fitting = {"integer"}
    elif path == "environment.ci":
        fitting = {"boolean"}
    elif path not in TEXT_LIMITS:
        fitting = set()
    if path in OPTIONAL:
        fitting |= {"null"}
    return st.one_of([values for name, values in _WRONG_TYPE.items() if name not in fitting])


def _broken_texts(path: str) -> SearchStrategy[Any]:
    too_long = st.builds(long_text, st.just(path), st.integers(TEXT_LIMITS[path] + 1, TEXT_LIMITS[path] * 2))
    return st.one_of(st.just(""), too_long, st.just(long_text(path, 10, "\0")))


def _mistakes(path: str) -> SearchStrategy[Any]:
    choices = [_values_of_other_types(path)]
    if path not in OPTIONAL:
        choices.append(st.just(MISSING))
    if path in TEXT_LIMITS:
        choices.append(_broken_texts(path))
    if path in COUNTS:
        choices.append(st.integers(max_value=-1) | st.integers(min_value=MAX_COUNT + 1))
    return st.one_of(choices)


_MISTAKES = {path: _mistakes(path) for path in [*_VALID_VALUES, *PARTS]}


@st.composite
def broken_events(draw: DrawFn) -> tuple[dict[str, Any], str]:
    """Events with one mistake that is ``invalid_schema``, and the path of it."""
    path = draw(st.sampled_from(sorted(_MISTAKES)))
    return changed(path, draw(_MISTAKES[path])), path


_DATA_MARK = "where the data goes"


def event_text(event: dict[str, Any], data: str | None = None, *, ascii_only: bool = True) -> str:
    """An event as JSON.

    :param data: takes the place of its ``event.data``, just as it stands.
    """
    if data is None:
        return json.dumps(event, ensure_ascii=ascii_only)
    marked = {**event, "event": {**event["event"], "data": _DATA_MARK}}
    return json.dumps(marked, ensure_ascii=ascii_only).replace(json.dumps(_DATA_MARK), data)


# --- bodies


def body_of(texts: Iterable[str]) -> bytes:
    """The body with these events, given as JSON."""
    return ('{"events":[' + ",".join(texts) + "]}").encode()


def batches(elements: SearchStrategy[str]) -> SearchStrategy[str]:
    """JSON objects with these elements as their ``events``, other members before and behind, and white space."""
    others = st.lists(st.builds("{}:{}".format, string_texts(), json_texts()), max_size=1)
    key = st.sampled_from(['"events"', '"events"', r'"\u0065vents"'])
    member = st.tuples(_SPACE, key, _SPACE, st.just(":"), _SPACE, _arrays(elements), _SPACE).map("".join)
    return st.builds(
        lambda before, events, behind: " {" + ",".join([*before, events, *behind]) + "}\n", others, member, others
    )


def bodies() -> SearchStrategy[bytes]:
    """What a client, or a stranger, may send: batches, other JSON, broken JSON and noise."""
    sound = st.builds(event_text, events(), json_texts() | st.none())
    texts = st.one_of(
        batches(sound | json_texts()),
        damaged(batches(sound | json_texts())),
        json_texts(),
        damaged(json_texts()),
    )
    return texts.map(str.encode) | st.binary(max_size=100)


_LONE = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def may_hold_surrogates(text: str) -> bool:
    """Whether an escape in this JSON looks like half of a surrogate pair, alone or not."""
    return bool(_LONE.search(text))
