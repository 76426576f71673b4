"""Replacement of lone surrogates, compared with the JSON decoder of the standard library."""

from __future__ import annotations

import json
import re

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.strategies import is_well_formed, thorough
from tkserver.wire import surrogates
from tkserver.wire.batch import run_steps

_LONE = re.compile("[\ud800-\udfff]")

LONE = [
    r"\ud800",
    r"\udbff",
    r"\udc00",
    r"\udfff",
    r"\uD800",
    r"\uDBFF",
    r"\uDcAb",
    r"\ud800\ud800",
    r"\udc00\ud800",
    r"\udc00\udc00",
    r"\ud800\u0041",
    r"\ud800\n",
    r"\ud83dx\ude00",
    r"\ud83d\\ude00",
    r"\\ud83d\ude00",
    r"\\\ud800",
    r"\\\\\\\ud83dx",
    r"\ud800\ud83d\ude00",
    r"\ud83d\ude00\ude00",
    r"\ud83d\\\ude00",
]
NOT_LONE = [
    "",
    r"\ud83d\ude00",
    r"\uD83D\uDE00",
    r"\ud83d\ude00\ud83d\ude00",
    r"\\ud800",
    r"\\\\ud800",
    r"\\ud83d\\ude00",
    r"\\\ud83d\ude00",
    r"\ud7ff\ue000",
    r"\u0064800",
    "\ue800\uf800",
    r"\ue800\uf800\ueFFF",
]


def replace(text: str) -> tuple[bytes, bytes] | None:
    return run_steps(surrogates.replace_lone_surrogates(text.encode()))


def restore(first: bytes, second: bytes) -> bytes:
    restored = surrogates.restore(first, second)
    assert run_steps(surrogates.restore_in_steps(first, second)) == restored
    return restored


def check(text: str) -> None:
    """Compare the result for a JSON text with the decoder of the standard library, which accepts lone surrogates."""
    decoded = json.dumps(json.loads(text), ensure_ascii=False)
    variants = replace(text)
    if variants is None:
        assert not _LONE.search(decoded)
        return
    assert _LONE.search(decoded)
    for variant in variants:
        # Only lone surrogates are replaced, each by one character.
        replaced = json.dumps(msgspec.json.decode(variant), ensure_ascii=False)
        assert _LONE.sub("?", decoded) == "".join(
            "?" if _LONE.match(old) else new for old, new in zip(decoded, replaced, strict=True)
        )
    differing = [index for index, pair in enumerate(zip(*variants, strict=True)) if pair[0] != pair[1]]
    assert len(differing) == len(_LONE.findall(decoded))
    assert restore(*variants) == text.encode()


@pytest.mark.parametrize("content", LONE)
def test_lone_surrogate_is_replaced(content: str) -> None:
    """A lone surrogate in any position and case is replaced, and can be restored."""
    assert replace(f'["{content}"]') is not None
    check(f'["{content}","x{content}x"]')


@pytest.mark.parametrize("content", NOT_LONE)
def test_other_text_is_unchanged(content: str) -> None:
    """Pairs, escaped backslashes, and other characters are not replaced."""
    assert replace(f'["{content}"]') is None
    assert restore(content.encode(), content.encode()) == content.encode()


def test_long_text_is_restored_in_steps() -> None:
    """A lone surrogate at the boundary of steps is restored."""
    for distance in range(8):
        text = '["' + "x" * ((1 << 20) - distance) + r"\udfff\ud800" + '"]'
        assert restore(*(replace(text) or (b"", b""))) == text.encode()


_PIECES = st.sampled_from(
    [
        "x",
        "ud800",
        "\\\\",
        "\\n",
        '\\"',
        r"\u0041",
        r"\ud83d",
        r"\ude00",
        r"\uD83D",
        r"\uDE00",
        r"\ue83d",
        r"\uf83d",
        "é",
    ]
)


@thorough
@given(st.lists(st.lists(_PIECES, max_size=12).map("".join), max_size=4))
def test_any_string(contents: list[str]) -> None:
    """Exactly the lone surrogates of any strings are replaced."""
    check("[" + ",".join(f'"{content}"' for content in contents) + "]")


@pytest.mark.parametrize("content", [*LONE, *NOT_LONE])
def test_text_at_boundary_of_steps(content: str) -> None:
    """The result does not depend on the position of an escape in a long text, which is searched in steps."""
    for distance in range(len(content) + 8):
        check('["' + "x" * (32_768 - distance) + content + '"]')
        check('["' + "\\\\" * ((32_768 - distance) // 2) + content + '"]')


@thorough
@given(st.text(r"\ud8cDCxX" + '"', max_size=40))
@example("\\")
@example(r"\ud800")
def test_invalid_json_stays_invalid(text: str) -> None:
    """The variants of a text that is not JSON are not JSON either."""
    variants = replace(text)
    if variants is not None and not is_well_formed(text):
        assert not any(is_well_formed(variant.decode()) for variant in variants)
