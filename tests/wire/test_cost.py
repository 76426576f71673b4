"""The CPU time for a body is proportional to its length, and no step is long.

All times are CPU times, compared with those of an ordinary batch that is measured in between.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from random import Random

import pytest

from bench import hostile
from bench.hostile import HEAD_BYTES, MAX_RATIO, SEARCH_BYTES, compare, search
from bench.recipes import KINDS, ORDINARY_EVENT, Kind, Recipe

MAX_STEP = 100
"""The longest step, as a multiple of the time for an ordinary batch of 100 events (about 1 ms)."""

MAX_DIVIDED_STEP = 15
"""The same for bodies without very long values, which cannot be divided."""

MIB = 1 << 20


def one_event(data: bytes) -> bytes:
    return many_events([data])


def many_events(data: list[bytes]) -> bytes:
    start, _, rest = ORDINARY_EVENT.partition(b'"data":{')
    end = rest.partition(b"}")[2]
    return b'{"events":[' + b",".join(start + b'"data":' + text + end for text in data) + b"]}"


def repeated(value: bytes, size: int) -> bytes:
    return b"[" + b",".join([value] * (size // (len(value) + 1))) + b"]"


def nested(value: bytes, size: int) -> bytes:
    """Return a list that ends in 2000 nested lists."""
    return repeated(value, size)[:-1] + b"," + b"[" * 2000 + b"]" * 2000 + b"]"


def events(value: bytes, number: int = 1000) -> bytes:
    return b'{"events":' + repeated(value, number * (len(value) + 1)) + b"}"


Sent = tuple[bytes, "str | None"]

HOSTILE: dict[str, Callable[[], Sent]] = {
    "nested after empty objects": lambda: (gzip.compress(many_events([nested(b"{}", 95_000)] * 51)), "gzip"),
    "nested after strings": lambda: (gzip.compress(many_events([nested(b'""', 95_000)] * 51)), "gzip"),
    "strings in 51 events": lambda: (many_events([repeated(b'"a"', 98_000)] * 51), None),
    "empty lists in one event": lambda: (one_event(repeated(b"[]", 5 * MIB)), None),
    "empty lists in one event of maximum length": lambda: (one_event(repeated(b"[]", 12_500_000)), None),
    "lone surrogate in one event": lambda: (one_event(repeated(b'"x"', 5 * MIB)[:-1] + rb',"\ud800"]'), None),
    "lone surrogates only": lambda: (one_event(repeated(rb'"\ud800"', 5 * MIB)), None),
    "lone surrogates of maximum length": lambda: (one_event(b'"' + rb"\ud800" * 2_000_000 + b'"'), None),
    "exponents": lambda: (many_events([repeated(b"1e100", 98_000)] * 51), None),
    "invalid at the last byte": lambda: (one_event(repeated(b"[]", 5 * MIB))[:-1] + b"x", None),
    "invalid UTF-8 at the last byte": lambda: (one_event(repeated('"é"'.encode(), 5 * MIB))[:-1] + b"\xff", None),
    "gzip members of one byte": lambda: (gzip.compress(b" ", mtime=0) * 240_000, "gzip"),
    "empty gzip members": lambda: (gzip.compress(b"", mtime=0) * 250_000, "gzip"),
    "gzip bomb": lambda: (gzip.compress(b" " * 50_000_000, 9), "gzip"),
    "empty events": lambda: (events(b"{}"), None),
    "numbers as events": lambda: (events(b"1"), None),
    "lists as events": lambda: (events(b"[]"), None),
    "different events without known fields": lambda: (
        b'{"events":[' + b",".join(b'{"":%d}' % n for n in range(100, 1000)) + b"]}",
        None,
    ),
    "different events with a wrong type": lambda: (
        b'{"events":[' + b",".join(b'{"event":%d}' % n for n in range(100, 1000)) + b"]}",
        None,
    ),
    "different events with an invalid id": lambda: (
        b'{"events":[' + b",".join(b'{"event_id":%d}' % n for n in range(100, 1000)) + b"]}",
        None,
    ),
    "empty events and a lone surrogate": lambda: (events(b"{}", 999)[:-2] + rb',"\ud800"]}', None),
    "lone surrogates as events": lambda: (events(rb'{"\ud800":0}'), None),
    "too many events": lambda: (events(b"1", 2_500_000), None),
    "one empty event": lambda: (events(b"{}", 1), None),
}
"""Bodies that were expensive once, and similar ones."""


@pytest.mark.parametrize("name", HOSTILE)
def test_expensive_body(name: str) -> None:
    """A body costs at most 20 times as much per byte as an ordinary batch, and no step takes more than 100 ms.

    If it costs more, two more attempts are made, because other processes can disturb one of them.
    """
    body, encoding = HOSTILE[name]()
    assert any(is_within_limits(body, encoding) for _ in range(3))


def is_within_limits(body: bytes, encoding: str | None) -> bool:
    cost, ordinary = compare(body, encoding, repeat=1 if len(body) > MIB else 9)
    return cost.per_byte < MAX_RATIO * ordinary.per_byte and cost.step < MAX_STEP * ordinary.seconds


DIVIDED = {
    "nested lists": lambda: (many_events([repeated(b"{}", 95_000)[:-1] + b"," + b"[" * 300 + b"]" * 301] * 50), None),
    "long strings": lambda: (many_events([b'"' + b"x" * 90_000 + b'"'] * 100), None),
    "strings": lambda: (many_events([repeated(b'"a"', 98_000)] * 51), None),
    "exponents": lambda: (many_events([repeated(b"1e399", 98_000)] * 51), None),
    "lone surrogates": lambda: (many_events([repeated(rb'"\ud800"', 98_000)] * 51), None),
    "tiny events": HOSTILE["different events without known fields"],
    "gzip members of one byte": HOSTILE["gzip members of one byte"],
    "gzip bomb": HOSTILE["gzip bomb"],
}


@pytest.mark.parametrize("name", DIVIDED)
def test_steps_are_short(name: str) -> None:
    """The work on an expensive body is divided into short steps. The best of three attempts counts."""
    body, encoding = DIVIDED[name]()
    attempts = [compare(body, encoding, repeat=1) for _ in range(3)]
    assert min(cost.step / ordinary.seconds for cost, ordinary in attempts) < MAX_DIVIDED_STEP


def test_short_search() -> None:
    """A short search for expensive bodies of all kinds finds none. The margin is wide, because the bodies are short."""
    one_round = [True, False]
    worst = search(KINDS, Random(1), lambda: one_round.pop(0))
    assert list(worst) == list(KINDS)
    assert {name: finding.ratio for name, finding in worst.items() if finding.ratio > 2 * MAX_RATIO} == {}


# --- the search itself

ORDINARY = {"ordinary": Kind(Recipe(ORDINARY_EVENT, events=100), (ORDINARY_EVENT,))}


def test_cost_counts_decompressed_bytes() -> None:
    """A compressed body counts with the bytes after decompression, and one that is too long with the limit."""
    body = b'{"events":[' + ORDINARY_EVENT + b"]}"
    assert hostile.measure(body).bytes == HEAD_BYTES + len(body)
    assert hostile.measure(gzip.compress(body), "gzip").bytes == HEAD_BYTES + len(body)
    assert hostile.measure(gzip.compress(b" " * 100_000), "gzip", 50_000).bytes == HEAD_BYTES + 50_000
    empty = gzip.compress(b"") * 100
    assert hostile.measure(empty, "gzip").bytes == HEAD_BYTES + len(empty)


@pytest.mark.parametrize("name", KINDS)
def test_mutated_bodies_keep_the_limit(name: str) -> None:
    """Mutations of a recipe depend only on the seed, and their bodies are not longer than the limit."""
    kind = KINDS[name]
    first, second = Random(7), Random(7)
    recipe = kind.recipe
    for _ in range(30):
        mutated = kind.mutate(recipe, first)
        assert mutated == kind.mutate(recipe, second)
        longest_value = len(mutated.event) + len(mutated.body) + len(mutated.value) + 2 * mutated.depth + 1000
        assert len(mutated.build(20_000)) <= max(20_000, longest_value)
        recipe = mutated


@pytest.mark.parametrize(("max_ratio", "status"), [(1e9, 0), (0.0, 1)])
def test_command_reports_the_limit(
    max_ratio: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command prints a row for each kind, and its exit status says whether a limit is exceeded."""
    for attribute, value in {
        "KINDS": ORDINARY,
        "MAX_BYTES": SEARCH_BYTES,
        "MAX_RATIO": max_ratio,
        "MAX_STEP": 1e9,
    }.items():
        monkeypatch.setattr(hostile, attribute, value)
    assert hostile.main(["--seed", "3", "--seconds", "0"]) == status
    output = capsys.readouterr().out
    assert "ordinary batch: 72512 bytes" in output
    assert [line.split()[0] for line in output.splitlines() if " ms  " in line] == ["ordinary"]
