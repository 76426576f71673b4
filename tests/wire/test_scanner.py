"""The scanner: spans of values, also in texts that the decoder does not support."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from msgspec import Raw

from tests.support.strategies import (
    damaged,
    is_shallow,
    is_well_formed,
    json_texts,
    may_contain_surrogates,
    nested,
    string_texts,
    thorough,
)
from tkserver.wire.scanner import Scanner

DEEP = 20_000
MANY_DIGITS = "9" * 4301


def elements(text: str, start: int = 0) -> list[str]:
    """Return the elements of the array that begins at ``start``."""
    return [text[first:end] for first, end in Scanner(text).elements(start)]


def members(text: str) -> list[tuple[str, str]]:
    """Return the keys and the values of an object."""
    return [(key, text[first:end]) for key, (first, end) in Scanner(text).members()]


_SPACE = st.text(" \t\r\n", max_size=2)


@st.composite
def spaced_texts(draw: DrawFn) -> list[tuple[str, str, str]]:
    """Draw JSON values, each with white space before and after it."""
    return draw(st.lists(st.tuples(_SPACE, json_texts(), _SPACE), max_size=4))


# --- valid JSON

UNSUPPORTED_BY_DECODER = [
    pytest.param(r'"\ud800"', id="lone surrogate"),
    pytest.param(r'{"\udc00":"\ud800\ud800"}', id="lone surrogate in a key"),
    pytest.param(nested(DEEP), id="deep arrays"),
    pytest.param(nested(DEEP, bracket="{"), id="deep objects"),
    pytest.param(nested(DEEP, r'"]]\"[\\"'), id="deep arrays with brackets in a string"),
    pytest.param(nested(DEEP // 2, nested(DEEP // 2, bracket="{")), id="deep arrays and objects"),
    pytest.param('{"a":"}","b":' + nested(DEEP) + ',"c":["]"]}', id="deep member"),
    pytest.param("[ " * DEEP + "]\n" * (DEEP - 1) + "]", id="deep arrays with spaces"),
    pytest.param("1e999999", id="huge exponent"),
]


@pytest.mark.parametrize("text", UNSUPPORTED_BY_DECODER)
def test_value_that_decoder_rejects_is_found(text: str) -> None:
    """A value that the decoder does not support is found in arrays and objects, and so are the values around it."""
    assert elements(f"[1, {text} ,2]") == ["1", text, "2"]
    assert members(f'{{"a":1, "b" : {text} ,"c":2}}') == [("a", "1"), ("b", text), ("c", "2")]


@pytest.mark.parametrize(
    "text", [MANY_DIGITS, "-" + MANY_DIGITS, f'{{"a":[{MANY_DIGITS}]}}'], ids=["positive", "negative", "nested"]
)
def test_number_with_many_digits_is_found(text: str) -> None:
    """Numbers can have any number of digits."""
    assert elements(f"[1, {text} ,2]") == ["1", text, "2"]
    assert members(f'{{"a":1, "b" : {text} ,"c":2}}') == [("a", "1"), ("b", text), ("c", "2")]


@thorough
@given(spaced_texts(), st.text(max_size=5), st.sampled_from(["", "]", ",", "}", "x"]))
@example([("", MANY_DIGITS, "")], "", "")
def test_spans_of_elements_are_exact(parts: list[tuple[str, str, str]], before: str, after: str) -> None:
    """The span of each element is exact, regardless of other elements and of the text around the array."""
    text = before + "[" + ",".join(map("".join, parts)) + "]" + after

    assert elements(text, len(before)) == [value for _, value, _ in parts]


def _is_supported(text: str) -> bool:
    """Return true if the decoder and the standard library support a text without lone surrogates."""
    return is_shallow(text) and len(text) < 4000


@thorough
@given(spaced_texts())
@example([(" ", "[1,[]]", "\n"), ("", '"]"', "\t"), ("", '{"events":[]}', "")])
def test_elements_equal_those_of_other_decoders(parts: list[tuple[str, str, str]]) -> None:
    """The scanner finds the same elements as the decoder and the standard library, if they support the text."""
    text = (
        "["
        + ",".join("".join(part) for part in parts if _is_supported(part[1]) and not may_contain_surrogates(part[1]))
        + "]"
    )
    found = elements(text)

    assert [element.encode() for element in found] == [bytes(raw) for raw in msgspec.json.decode(text, type=list[Raw])]
    assert [json.loads(element) for element in found] == json.loads(text)


@thorough
@given(
    st.lists(st.tuples(_SPACE, string_texts(), _SPACE, _SPACE, json_texts().filter(_is_supported), _SPACE), max_size=4)
)
def test_all_members_are_found(parts: list[tuple[str, str, str, str, str, str]]) -> None:
    """All members of an object are found with their decoded keys and the spans of their values."""
    body = ",".join(f"{a}{key}{b}:{c}{value}{d}" for a, key, b, c, value, d in parts)
    text = " {" + body + "}\n"

    assert members(text) == [(json.loads(key), value) for _, key, _, _, value, _ in parts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", []),
        (" { } ", []),
        (r'{"\u0065vents":[]}', [("events", "[]")]),
        ('{"a":1,"a":2}', [("a", "1"), ("a", "2")]),
        ('{"":{"a":1}}', [("", '{"a":1}')]),
        ('{"a":"}"}', [("a", '"}"')]),
    ],
)
def test_empty_objects_and_special_keys(text: str, expected: list[tuple[str, str]]) -> None:
    """Empty objects, and escaped, empty and repeated keys are read."""
    assert members(text) == expected


# --- invalid JSON


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "[]",
        "1",
        '"{}"',
        "{",
        "}",
        "{,}",
        '{"a"}',
        '{"a":}',
        '{"a" 1}',
        '{"a" 11}',
        '{"a"=1}',
        '{"a":1',
        '{"a":1,',
        '{"a":1,}',
        '{"a":1,,"b":2}',
        '{"a":1 "b":2}',
        '{"a":1 ""b":2}',
        '{"a":1}}',
        '{"a":1} x',
        '{"a":1}{}',
        "{1:2}",
        "{null:1}",
        "{a:1}",
        "{'a':1}",
        "{[]:1}",
        '{"a":01}',
        '{"a":+1}',
        '{"a":1.}',
        '{"a":.5}',
        '{"a":NaN}',
        '{"a":Infinity}',
        '{"a":-Infinity}',
        '{"a":[NaN]}',
        '{"a":True}',
        '{"a":"\t"}',
        '{"a":"\\x"}',
        '{"a":"\\u12"}',
        '{"a":"',
        '{"a":"\\',
        '{"a":[1,]}',
        '{"a":[}',
        '{"a":1}\0',
        '{"a":\u00a01}',
        "\ufeff{}",
        '{"a":' + nested(DEEP)[:-1] + "}",
        '{"a":' + nested(DEEP)[:-1],
        '{"a":' + nested(DEEP) + "]}",
        '{"a":' + "[" * DEEP,
        '{"a":' + "[" * DEEP + '"',
        '{"a":' + "[" * DEEP + '"\\',
    ],
    ids=lambda text: text if len(text) < 40 else f"{text[:8]}...{text[-3:]}",
)
def test_invalid_object_raises_value_error(text: str) -> None:
    """A text that is not a complete object raises ValueError, and no other exception."""
    with pytest.raises(ValueError):
        members(text)


@pytest.mark.parametrize("text", ["{" + "[" * DEEP, "{" + nested(DEEP) + ":1}", '{"a":1,' + '{"a":' * DEEP], ids=len)
def test_deeply_nested_key_raises_value_error(text: str) -> None:
    """A deeply nested value as a key raises ValueError, like any other key that is not a string."""
    with pytest.raises(ValueError):
        members(text)


@pytest.mark.parametrize(
    "text", ["", "{}", "1", "[", "[1", "[1,", "[1,]", "[,]", "[1 2]", "[1 22]", "[NaN]", "[01]", '["', "[}", "{1]"]
)
def test_invalid_array_raises_value_error(text: str) -> None:
    """A text that does not begin with a complete array raises ValueError, and no other exception."""
    with pytest.raises(ValueError):
        elements(text)


@thorough
@given(damaged(st.builds("{{{}:{}}}".format, string_texts(), json_texts().filter(_is_supported))))
def test_damaged_object_is_read_if_still_valid(text: str) -> None:
    """A damaged object is read if it is still valid JSON, and raises ValueError otherwise."""
    try:
        keys = [key for key, _ in members(text)]
    except ValueError:
        assert not is_well_formed(text) or not text.lstrip(" \t\r\n").startswith("{")
    else:
        assert is_well_formed(text)
        assert keys == [key for key, _ in json.loads(text, object_pairs_hook=list)]


# --- time: tests that take too long fail by the timeout of pytest


def test_unterminated_string_takes_linear_time() -> None:
    """The time for an unterminated string after deep nesting is proportional to its length."""
    text = '{"a":' + "[" * DEEP + '"' + '\\"' * 1_000_000
    with pytest.raises(ValueError):
        members(text)


@pytest.mark.parametrize("count", [1000])
def test_many_deeply_nested_elements_take_linear_time(count: int) -> None:
    """The time for many deeply nested elements is proportional to their length."""
    text = "[" + ",".join([nested(2500)] * count) + "]"
    assert len(elements(text)) == count
