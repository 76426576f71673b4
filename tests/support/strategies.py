"""Hypothesis strategies for JSON texts, events and bodies, with values at the limits and outside of them."""

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

# Every run uses the same examples, without a deadline, so that failures can be reproduced.
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
"""Maximum length of each string of an event, by its path."""

PREFIXES = {"schema_version": "1.", "user_id": "client_"}
"""Required prefixes of strings, by path."""

OPTIONAL = (
    "service.language_version",
    "session_id",
    "environment.os_version",
    "environment.arch",
    "environment.ci",
    "environment.shell",
    "event.category",
)
"""Paths of values that can be missing or null."""

TIMES = ("timestamp", "metadata.transmission_timestamp")
"""Paths of values that are times."""

COUNTS = ("metadata.batch_size", "metadata.retry_count")
"""Paths of values that are counts."""

OBJECTS = ("service", "environment", "event", "metadata")
"""Paths of values that are objects."""

MAX_COUNT = 2_147_483_647


def event_with(path: str, value: Any) -> dict[str, Any]:
    """Return an event with this value at a path. All other values are valid."""
    return make_event(**{path.replace(".", "__"): value})


def text_for(path: str, length: int, character: str = "x") -> str:
    """Return a string of this length with the prefix that the path requires."""
    prefix = PREFIXES.get(path, "")
    return prefix + character * (length - len(prefix))


# --- JSON texts

_SPACE = st.text(" \t\r\n", max_size=2)
_LITERAL = st.sampled_from(["null", "true", "false"])
_PLAIN = st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs"], exclude_characters='"\\'), max_size=8)
_ESCAPE = st.sampled_from(
    [r"\"", r"\\", r"\/", r"\b", r"\f", r"\n", r"\r", r"\t", r"\u0041", r"\u001F", r"\ud83d\ude00", r"\\u0000", r"\\\\"]
)
_NUL = st.sampled_from([r"\u0000", r"\\\u0000", r"\u0000\u0000"])
_LONE_SURROGATE = st.sampled_from([r"\ud800", r"\udfff", r"\udc00\ud800", r"\uD83Dx", r"\udbff\n"])
_DIGIT_COUNTS_AT_LIMITS = (299, 300, 301, 302, 399, 400, 401, 402, 4_301, 16_384, 131_073)


def string_texts(*, surrogates: bool = True) -> SearchStrategy[str]:
    """Return a strategy for JSON strings with all kinds of escapes.

    :param surrogates: true to include lone surrogates.
    """
    # Most strings are valid. Otherwise almost every value with several strings would be rejected.
    valid = st.lists(_PLAIN | _ESCAPE, max_size=4)
    with_nul = st.lists(_PLAIN | _ESCAPE | _NUL, max_size=4)
    with_surrogates = st.lists(_PLAIN | _ESCAPE | _LONE_SURROGATE, max_size=4)
    pieces = st.one_of(valid, valid, valid, with_surrogates if surrogates else with_nul, with_nul)
    return pieces.map(lambda parts: '"' + "".join(parts) + '"')


_SHORT_DIGITS = st.integers(0, 10**20).map(str)
_LONG_DIGITS = st.builds(
    lambda first, rest, length: first + rest * (length - 1),
    st.sampled_from("19"),
    st.sampled_from("09"),
    st.sampled_from(_DIGIT_COUNTS_AT_LIMITS),
)
_LONG_FRACTION = st.builds(
    lambda digit, length, last: digit * (length - 1) + last,
    st.sampled_from("09"),
    st.sampled_from(_DIGIT_COUNTS_AT_LIMITS[:-1]),
    st.sampled_from("05"),
)
_EXPONENT = st.builds(
    "".join,
    st.tuples(
        st.sampled_from("eE"),
        st.sampled_from(["", "+", "-"]),
        st.sampled_from(["", "", "", "0", "0" * 20]),
        st.integers(0, 410).map(str)
        | st.integers(95, 102).map(str)
        | st.sampled_from(["699", "700", "16383", "131071", "147455", "999999", "99999999999999"]),
    ),
)


def number_texts() -> SearchStrategy[str]:
    """Return a strategy for numbers of any size, including those with about 400 digits when written out."""
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
    """Return nested arrays or objects.

    :param inner: the JSON text of the innermost value.
    :param bracket: ``[`` for arrays, ``{`` for objects.
    """
    opening, closing = ("[", "]") if bracket == "[" else ('{"a":', "}")
    return opening * depth + (inner or ("0" if bracket == "{" else "")) + closing * depth


def _arrays(values: SearchStrategy[str]) -> SearchStrategy[str]:
    elements = st.tuples(_SPACE, values, _SPACE).map("".join)
    return st.lists(elements, max_size=4).map(",".join).map("[{}]".format)


def _objects(keys: SearchStrategy[str], values: SearchStrategy[str]) -> SearchStrategy[str]:
    members = st.tuples(_SPACE, keys, _SPACE, st.just(":"), _SPACE, values, _SPACE).map("".join)
    return st.lists(members, max_size=4).map(",".join).map("{{{}}}".format)


DEEP = 200_000
"""More nested levels than the decoder accepts with any version of Python."""

_DEPTHS = st.sampled_from([2, 400, 499])


@cache  # constructing the strategy takes much longer than drawing an example
def json_texts(*, surrogates: bool = True, deep: bool = False) -> SearchStrategy[str]:
    """Return a strategy for JSON values, with all escapes, white space, huge numbers and about 500 nested levels.

    :param surrogates: true to include lone surrogates.
    :param deep: true to include values that are nested too deeply for the decoder.
    """
    strings = string_texts(surrogates=surrogates)
    values = st.recursive(
        st.one_of(_LITERAL, st.integers().map(str), number_texts(), strings),
        lambda children: _arrays(children) | _objects(strings, children),
        max_leaves=8,
    )
    depths = _DEPTHS | st.just(DEEP) if deep else _DEPTHS
    return st.one_of(values, values, values, values, st.builds(nested, depths, values, st.sampled_from("[{")))


def is_shallow(text: str) -> bool:
    """Return true if the nesting is not too deep for any decoder."""
    return text.count("[") + text.count("{") < 300


def is_well_formed(text: str) -> bool:
    """Return true if a text is JSON according to RFC 8259. The text must not be nested deeply."""

    def reject(constant: str) -> None:
        raise ValueError(constant)

    try:
        # Numbers are not converted, because Python converts at most 4300 digits.
        json.loads(text, parse_constant=reject, parse_int=str, parse_float=str)
    except ValueError:
        return False
    return True


_NOISE = st.text('{}[]",:\\u0d8e1.- \n\x00Na', max_size=3)


@st.composite
def damaged(draw: DrawFn, texts: SearchStrategy[str]) -> str:
    """Draw a text in which a few characters are removed, replaced or inserted."""
    text = draw(texts)
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 3)) | st.just(len(text)))
    return text[:start] + draw(_NOISE) + text[end:]


# --- events

_CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
_OFFSETS = st.integers(-(24 * 60 - 1), 24 * 60 - 1).map(lambda minutes: timezone(timedelta(minutes=minutes)))
_DAY = timedelta(days=1)
_MOMENTS = st.datetimes(datetime.min + _DAY, datetime.max - _DAY)


_VISIBLE_ASCII = st.characters(min_codepoint=0x21, max_codepoint=0x7E)


@st.composite
def _texts(draw: DrawFn, path: str) -> str:
    prefix = PREFIXES.get(path, "")
    room = TEXT_LIMITS[path] - len(prefix)
    characters = _VISIBLE_ASCII if path == "user_id" else _CHARACTERS
    any_length = st.text(characters, min_size=0 if prefix else 1, max_size=room)
    at_the_limit = characters.map(lambda character: character * room)
    return prefix + draw(any_length | at_the_limit)


_NANOSECONDS = st.text("0123456789", min_size=1, max_size=12)

_TIMES = st.one_of(
    st.builds(lambda moment, offset: moment.replace(tzinfo=offset).isoformat(), _MOMENTS, _OFFSETS),
    _MOMENTS.map(lambda moment: moment.isoformat() + "Z"),
    _MOMENTS.map(lambda moment: moment.isoformat().lower() + "z"),
    st.builds(lambda moment, digits: f"{moment.isoformat(timespec='microseconds')}{digits}Z", _MOMENTS, _NANOSECONDS),
)

_VALID_VALUES: dict[str, SearchStrategy[Any]] = {
    **{path: _texts(path) for path in TEXT_LIMITS},
    **dict.fromkeys(TIMES, _TIMES),
    **dict.fromkeys(COUNTS, st.integers(0, MAX_COUNT) | st.sampled_from([0, MAX_COUNT])),
    "event_id": st.uuids().map(str) | st.uuids().map(lambda value: str(value).upper()),
    "environment.ci": st.booleans(),
}


def _choices(path: str) -> SearchStrategy[Any]:
    absent = st.sampled_from([None, MISSING]) if path in OPTIONAL else st.nothing()
    return _VALID_VALUES[path] | absent


# The strategies are constructed once, because this takes much longer than drawing from them.
_CHOICES = {path: _choices(path) for path in _VALID_VALUES}
_SOME_PATHS = st.lists(st.sampled_from(sorted(_VALID_VALUES.keys() - {"event_id"})), unique=True, max_size=8)
_SOME_OBJECTS = st.lists(st.sampled_from(["", *(f"{path}__" for path in OBJECTS)]), max_size=2)
_UNKNOWN_VALUES = st.none() | st.integers() | st.text(_CHARACTERS, max_size=5)


@st.composite
def events(draw: DrawFn) -> dict[str, Any]:
    """Draw a valid event, with values at limits, optional keys that are missing or null, and unknown keys."""
    overrides = {path.replace(".", "__"): draw(_CHOICES[path]) for path in ["event_id", *draw(_SOME_PATHS)]}
    unknown = {f"{prefix}unknown": draw(_UNKNOWN_VALUES) for prefix in draw(_SOME_OBJECTS)}
    return make_event(**overrides, **unknown)


_VALUES_BY_TYPE: dict[str, SearchStrategy[Any]] = {
    "object": st.dictionaries(st.text("ab"), st.integers(), max_size=2),
    "array": st.lists(st.integers(), max_size=2),
    "string": st.just("words"),
    "integer": st.integers(),
    "fraction": st.floats(allow_nan=False, allow_infinity=False).map(lambda number: int(number) % 1000 + 0.5),
    "boolean": st.booleans(),
    "null": st.none(),
}


def _values_of_other_types(path: str) -> SearchStrategy[Any]:
    valid_types = {"string"}
    if path in OBJECTS:
        valid_types = {"object"}
    elif path in COUNTS:
        valid_types = {"integer"}
    elif path == "environment.ci":
        valid_types = {"boolean"}
    elif path not in TEXT_LIMITS:
        valid_types = set()
    if path in OPTIONAL:
        valid_types |= {"null"}
    return st.one_of([values for name, values in _VALUES_BY_TYPE.items() if name not in valid_types])


def _invalid_texts(path: str) -> SearchStrategy[Any]:
    too_long = st.builds(text_for, st.just(path), st.integers(TEXT_LIMITS[path] + 1, TEXT_LIMITS[path] * 2))
    return st.one_of(st.just(""), too_long, st.just(text_for(path, 10, "\0")))


def _invalid_choices(path: str) -> SearchStrategy[Any]:
    choices = [_values_of_other_types(path)]
    if path not in OPTIONAL:
        choices.append(st.just(MISSING))
    if path in TEXT_LIMITS:
        choices.append(_invalid_texts(path))
    if path in COUNTS:
        choices.append(st.integers(max_value=-1) | st.integers(min_value=MAX_COUNT + 1))
    return st.one_of(choices)


_INVALID_VALUES = {path: _invalid_choices(path) for path in [*_VALID_VALUES, *OBJECTS]}


@st.composite
def invalid_events(draw: DrawFn) -> tuple[dict[str, Any], str]:
    """Draw an event with one invalid value, and the path of this value. The error code is ``invalid_schema``."""
    path = draw(st.sampled_from(sorted(_INVALID_VALUES)))
    return event_with(path, draw(_INVALID_VALUES[path])), path


_DATA_PLACEHOLDER = "placeholder of the data"


def event_text(event: dict[str, Any], data: str | None = None, *, ascii_only: bool = True) -> str:
    """Return an event as JSON.

    :param data: JSON text that replaces the value of ``event.data``, even if it is not well-formed.
    """
    if data is None:
        return json.dumps(event, ensure_ascii=ascii_only)
    with_placeholder = {**event, "event": {**event["event"], "data": _DATA_PLACEHOLDER}}
    return json.dumps(with_placeholder, ensure_ascii=ascii_only).replace(json.dumps(_DATA_PLACEHOLDER), data)


# --- bodies


def batch_body(texts: Iterable[str]) -> bytes:
    """Return the body of a request.

    :param texts: the events as JSON.
    """
    return ('{"events":[' + ",".join(texts) + "]}").encode()


def batches(elements: SearchStrategy[str]) -> SearchStrategy[str]:
    """Return a strategy for bodies with these events, with other members and white space around them."""
    others = st.lists(st.builds("{}:{}".format, string_texts(), json_texts()), max_size=1)
    key = st.sampled_from(['"events"', '"events"', r'"\u0065vents"'])
    member = st.tuples(_SPACE, key, _SPACE, st.just(":"), _SPACE, _arrays(elements), _SPACE).map("".join)
    return st.builds(
        lambda before, events, after: " {" + ",".join([*before, events, *after]) + "}\n", others, member, others
    )


def bodies() -> SearchStrategy[bytes]:
    """Return a strategy for bodies: batches, other JSON, damaged JSON, and random bytes."""
    values = json_texts(deep=True)
    valid = st.builds(event_text, events(), values | st.none())
    texts = st.one_of(batches(valid | values), damaged(batches(valid | values)), values, damaged(values))
    return texts.map(str.encode) | st.binary(max_size=100)


_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def may_contain_surrogates(text: str) -> bool:
    """Return true if a JSON text contains an escape of a surrogate, in a pair or alone."""
    return bool(_SURROGATE_ESCAPE.search(text))
