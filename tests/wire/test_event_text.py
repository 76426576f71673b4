"""The text of an invalid event, as it is kept in quarantine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.events import MISSING, make_event
from tkserver.wire.event import MAX_EVENT_BYTES
from tkserver.wire.event_text import kept_text


def kept(text: str | bytes) -> tuple[str, str | None]:
    """Return the kept text of an event and its user id."""
    result = kept_text(text if isinstance(text, bytes) else text.encode())
    assert result is not None
    return result.text.decode(), result.user_id


@pytest.mark.parametrize("user_id", ["client_1", "anon_~!", "client_"])
def test_anonymous_user_id(user_id: str) -> None:
    """An anonymous user id is kept and returned."""
    event = make_event(user_id=user_id, event__type="")
    text, found = kept(json.dumps(event))
    assert (json.loads(text), found) == (event, user_id)


@pytest.mark.parametrize(
    "user_id",
    ["me@example.org", "", "client", "client_\u200b", "client_" + "x" * 250, None, 5, ["client_1"], {"id": "client_1"}],
    ids=lambda user_id: ascii(user_id)[:20],
)
def test_other_user_id(user_id: Any) -> None:
    """A user id that is not anonymous is removed, and everything else is kept."""
    text, found = kept(json.dumps(make_event(user_id=user_id)))
    assert found is None
    assert set(json.loads(text)) == set(make_event(user_id=MISSING))


@pytest.mark.parametrize(
    "text",
    [
        '{"user_id":"bob","user_id":"client_1"}',
        '{"user_id":"client_2","user_id":"client_1"}',
        '{"user_\\u0069d":"bob","user_id":"client_1"}',
    ],
)
def test_repeated_user_id(text: str) -> None:
    """If the key occurs several times, only the last one is kept, as in the decoded event."""
    assert kept(text) == ('{"user_id":"client_1"}', "client_1")


def test_escaped_key() -> None:
    """The key can be written with escapes."""
    assert kept('{"\\u0075ser_id":"bob","a":1}') == ('{"a":1}', None)


@pytest.mark.parametrize("text", ['"text"', "[1, 2]", "null", "-1", "true"])
def test_not_an_object(text: str) -> None:
    """What is not an object is kept unchanged."""
    assert kept(text) == (text, None)


def test_values_are_not_changed() -> None:
    """Values are kept as they were sent, with their spaces, escapes and digits."""
    assert kept('{"a" : [ 1.50e+2, "\\u00e4\\/" ],\n"user_id":"bob"}') == ('{"a":[ 1.50e+2, "\\u00e4\\/" ]}', None)


@pytest.mark.parametrize(
    "value", ["\\ud800", "\\uDfFf", "\\\\ud800", "\\ud83d\\ude00 \\udead", "\\uD7ff\\ue000\\ud900"]
)
def test_lone_surrogates(value: str) -> None:
    """Lone surrogates, which the decoder does not accept, are kept, and the user id is removed nevertheless."""
    text = f'{{"user_id":"b\\udc00b","data":["\\ud800","{value}"]}}'
    assert kept(text) == (f'{{"data":["\\ud800","{value}"]}}', None)


def test_lone_surrogate_in_user_id_with_prefix() -> None:
    """A user id with a lone surrogate is not anonymous."""
    assert kept('{"user_id":"client_\\ud800","a":1}') == ('{"a":1}', None)


def test_surrogates_in_keys() -> None:
    """Keys that differ only in surrogates do no harm."""
    text, _ = kept('{"user_id":"bob","\\ud800":1,"\\ue800":2}')
    assert "bob" not in text


@pytest.mark.parametrize("user_id", ["bob", "client_1"])
def test_long_event(user_id: str) -> None:
    """Of an event that is too long, the keys of an event are kept."""
    event = make_event(user_id=user_id, event__data="x" * MAX_EVENT_BYTES)
    text, found = kept(json.dumps({**event, "other": 1}))
    assert found == (user_id if user_id == "client_1" else None)
    assert json.loads(text) == {name: value for name, value in event.items() if name != "user_id" or found}


def test_long_event_with_lone_surrogate() -> None:
    """The text of an event that is too long and contains lone surrogates is not kept."""
    assert kept_text(b'{"user_id":"bob","a":"' + b"\\ud800" * MAX_EVENT_BYTES + b'"}') is None


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


@given(JSON_VALUES, st.booleans())
def test_any_json(value: Any, escaped: bool) -> None:
    """The kept text of any JSON value is the same value, without a user id that is not anonymous."""
    text = json.dumps(value, ensure_ascii=escaped).encode()
    result = kept_text(text)
    assert result is not None
    expected = value
    if isinstance(value, dict) and result.user_id is None:
        expected = {name: inner for name, inner in value.items() if name != "user_id"}
    assert json.loads(result.text) == expected
