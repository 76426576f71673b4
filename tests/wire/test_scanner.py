"""The bounds that the scanner finds: those of the decoder where that finds any, and sound ones where it does not."""

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
    may_hold_surrogates,
    nested,
    string_texts,
    thorough,
)
from tkserver.wire.scanner import Scanner

DEEP = 20_000
MANY_DIGITS = "9" * 4301


def elements(text: str, start: int = 0) -> list[str]:
    return [text[first:end] for first, end in Scanner(text).elements(start)]


def members(text: str) -> list[tuple[str, str]]:
    return [(key, text[first:end]) for key, (first, end) in Scanner(text).members()]


_SPACE = st.text(" \t\r\n", max_size=2)


@st.composite
def spaced_texts(draw: DrawFn) -> list[tuple[str, str, str]]:
    """JSON values, with the white space before and behind each."""
    return draw(st.lists(st.tuples(_SPACE, json_texts(), _SPACE), max_size=4))


# --- what is JSON

HARD_TO_DECODE = [
    pytest.param(r'"\ud800"', id="lone surrogate"),
    pytest.param(r'{"\udc00":"\ud800\ud800"}', id="lone surrogate in a key"),
    pytest.param(nested(DEEP), id="deep arrays"),
    pytest.param(nested(DEEP, bracket="{"), id="deep objects"),
    pytest.param(nested(DEEP, r'"]]\"[\\"'), id="deep, with brackets in a string"),
    pytest.param(nested(DEEP // 2, nested(DEEP // 2, bracket="{")), id="deep, of both kinds"),
    pytest.param('{"a":"}","b":' + nested(DEEP) + ',"c":["]"]}', id="deep within"),
    pytest.param("[ " * DEEP + "]\n" * (DEEP - 1) + "]", id="deep, with spaces"),
    pytest.param("1e999999", id="huge exponent"),
]


@pytest.mark.parametrize("text", HARD_TO_DECODE)
def test_hard_to_decode(text: str) -> None:
    """A value that cannot be decoded has its bounds, and so do its neighbours in arrays and objects."""
    assert elements(f"[1, {text} ,2]") == ["1", text, "2"]
    assert members(f'{{"a":1, "b" : {text} ,"c":2}}') == [("a", "1"), ("b", text), ("c", "2")]


@pytest.mark.parametrize("text", [MANY_DIGITS, "-" + MANY_DIGITS, f'{{"a":[{MANY_DIGITS}]}}'], ids=["+", "-", "within"])
def test_many_digits(text: str) -> None:
    """Any number of digits is JSON."""
    assert elements(f"[1, {text} ,2]") == ["1", text, "2"]
    assert members(f'{{"a":1, "b" : {text} ,"c":2}}') == [("a", "1"), ("b", text), ("c", "2")]


@thorough
@given(spaced_texts(), st.text(max_size=5), st.sampled_from(["", "]", ",", "}", "x"]))
@example([("", MANY_DIGITS, "")], "", "")
def test_elements(parts: list[tuple[str, str, str]], before: str, behind: str) -> None:
    """Each element has exactly its own bounds, whatever it, its neighbours and the text around the array are."""
    text = before + "[" + ",".join(map("".join, parts)) + "]" + behind

    assert elements(text, len(before)) == [value for _, value, _ in parts]


def _is_easy(text: str) -> bool:
    return is_shallow(text) and len(text) < 4000


@thorough
@given(spaced_texts())
@example([(" ", "[1,[]]", "\n"), ("", '"]"', "\t"), ("", '{"events":[]}', "")])
def test_elements_as_others_see_them(parts: list[tuple[str, str, str]]) -> None:
    """The decoder and the standard library find the same elements, where they are able to."""
    text = (
        "[" + ",".join("".join(part) for part in parts if _is_easy(part[1]) and not may_hold_surrogates(part[1])) + "]"
    )
    found = elements(text)

    assert [element.encode() for element in found] == [bytes(raw) for raw in msgspec.json.decode(text, type=list[Raw])]
    assert [json.loads(element) for element in found] == json.loads(text)


@thorough
@given(st.lists(st.tuples(_SPACE, string_texts(), _SPACE, _SPACE, json_texts().filter(_is_easy), _SPACE), max_size=4))
def test_members(parts: list[tuple[str, str, str, str, str, str]]) -> None:
    """Each member of an object has its key, decoded, and the bounds of its value; none is left out for another."""
    body = ",".join(f"{a}{key}{b}:{c}{value}{d}" for a, key, b, c, value, d in parts)
    text = " {" + body + "}\n"

    assert members(text) == [(json.loads(key), value) for _, key, _, _, value, _ in parts]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{}", []),
        (" { } ", []),
        (r'{"\u0065vents":[]}', [("events", "[]")]),
        ('{"a":1,"a":2}', [("a", "1"), ("a", "2")]),
        ('{"":{"a":1}}', [("", '{"a":1}')]),
        ('{"a":"}"}', [("a", '"}"')]),
    ],
)
def test_objects(text: str, found: list[tuple[str, str]]) -> None:
    """Empty objects, escaped, empty and repeated keys are read as they stand."""
    assert members(text) == found


# --- what is not


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
def test_no_object(text: str) -> None:
    """What is no object, or not all of one, is a ValueError and nothing else."""
    with pytest.raises(ValueError):
        members(text)


@pytest.mark.parametrize("text", ["{" + "[" * DEEP, "{" + nested(DEEP) + ":1}", '{"a":1,' + '{"a":' * DEEP], ids=len)
def test_deep_key(text: str) -> None:
    """A key that is no string but nested deeply is a ValueError like any other that is no string."""
    with pytest.raises(ValueError):
        members(text)


@pytest.mark.parametrize(
    "text", ["", "{}", "1", "[", "[1", "[1,", "[1,]", "[,]", "[1 2]", "[1 22]", "[NaN]", "[01]", '["', "[}", "{1]"]
)
def test_no_array(text: str) -> None:
    """What is no array, or not all of one, is a ValueError and nothing else."""
    with pytest.raises(ValueError):
        elements(text)


@thorough
@given(damaged(st.builds("{{{}:{}}}".format, string_texts(), json_texts().filter(_is_easy))))
def test_damaged(text: str) -> None:
    """Of damaged objects, those that are still JSON are read, and the others are a ValueError."""
    try:
        found = [key for key, _ in members(text)]
    except ValueError:
        assert not is_well_formed(text) or not text.lstrip(" \t\r\n").startswith("{")
    else:
        assert is_well_formed(text)
        assert found == [key for key, _ in json.loads(text, object_pairs_hook=list)]


# --- time: what takes more than its share runs into the timeout of every test


def test_time_for_quotes() -> None:
    """A string that never ends takes time in proportion to its length, also behind deep nesting."""
    text = '{"a":' + "[" * DEEP + '"' + '\\"' * 1_000_000
    with pytest.raises(ValueError):
        members(text)


@pytest.mark.parametrize("count", [1000])
def test_time_for_deep_elements(count: int) -> None:
    """Many elements that are nested deeply take time in proportion to their length."""
    text = "[" + ",".join([nested(2500)] * count) + "]"
    assert len(elements(text)) == count
