"""The examples of ``docs/insight.md`` are correct."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pytest

from tests.support.client import App
from tests.support.database import Database
from tests.support.documents import text_of
from tests.support.naive_statistics import RawEvent
from tests.support.raw_events import NOW, insert
from tkserver.cli.stats import stats
from tkserver.insight.aggregator import run_once
from tkserver.insight.statistics import newcombe
from tkserver.operations.apps import find_app
from tkserver.operations.statistics import read_panel
from tkserver.storage.blocking import Connection, transaction

DOCUMENT = text_of("insight.md")

_DEFAULTS = {
    "version": "1.0.0",
    "type": "command_execution",
    "data": '{"command": "build"}',
    "ci": "false",
    "events": "1",
}
_RESULT = re.compile(r"^`tkserver stats (my-cli [^`]*)`:\n\n```json\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """An example.

    :ivar rows: the events, by the headings of the columns.
    :ivar results: arguments of ``tkserver stats``, with a part of the JSON that is printed.
    """

    term: str
    timezone: str
    rows: list[dict[str, str]]
    results: list[tuple[str, Any]]


def section(heading: str) -> str:
    """Return the text below a heading."""
    return DOCUMENT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def table(text: str) -> list[dict[str, str]]:
    """Return the rows of the first table, by the headings of its columns."""
    first = text[text.index("| ") :].partition("\n\n")[0]
    lines = re.findall(r"^\| (.*) \|$", first, re.MULTILINE)
    heading, *rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [dict(zip(heading, row, strict=True)) for row in rows]


def examples() -> Iterator[Example]:
    """Return the examples of the document."""
    for part in section("Examples").split("\n### ")[1:]:
        term, _, text = part.partition("\n")
        zone = re.search(r"The time zone is `([\w/]+)`", text)
        results = [(arguments, json.loads(expected)) for arguments, expected in _RESULT.findall(text)]
        yield Example(term, zone[1] if zone else "UTC", table(text), results)


EXAMPLES = list(examples())


def events(example: Example) -> list[RawEvent]:
    """Return the events of an example."""
    result: list[RawEvent] = []
    for row in example.rows:
        row = _DEFAULTS | row
        happened = datetime.fromisoformat(row["happened"]).replace(tzinfo=timezone.utc)
        received = datetime.fromisoformat(row.get("received", row["happened"])).replace(tzinfo=timezone.utc)
        data = json.loads(row["data"].strip("`"))
        for _ in range(int(row["events"])):
            result.append(
                RawEvent(
                    len(result) + 1, f"client_{row['user']}", happened, received, row["ci"] == "true", row["version"],
                    "linux", "x86_64", "bash", "rust", row["type"], data,
                )
            )  # fmt: skip
    return result


def assert_contains(actual: Any, expected: Any, path: str) -> None:
    """Check that JSON has all expected values. Lists have equal lengths; objects can have other keys."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert_contains(actual[key], value, f"{path}.{key}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), (path, actual)
        for index, pair in enumerate(zip(actual, expected, strict=True)):
            assert_contains(*pair, f"{path}[{index}]")
    elif path.endswith(("_ms", "_s")) and expected is not None:
        assert actual == pytest.approx(expected, rel=0.05, abs=0.001), path
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, abs=0.00005), path
    else:
        assert actual == expected, path


def test_every_definition_has_an_example() -> None:
    """The examples follow the definitions, in the same order."""
    assert [example.term.lower() for example in EXAMPLES] == [
        row["term"].lower() for row in table(section("Definitions"))
    ]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.term)
def test_example(connection: Connection, database: Database, example: Example) -> None:
    """The events of an example have the results that the document states."""
    app = App().install(database)
    database.query(
        "INSERT INTO apps (org_id, app_id, name, timezone) VALUES (%s, %s, 'my-cli', %s)",
        app.org_id,
        app.app_id,
        example.timezone,
    )
    with transaction(connection):
        insert(connection, app, events(example))
    run_once(connection, lambda _: None)
    assert example.results
    for arguments, expected in example.results:
        parsed = stats.make_context("stats", shlex.split(arguments)).params
        options = {name.rstrip("_"): value for name, value in parsed.items() if isinstance(value, str)}
        found, panel = find_app(connection, options.pop("app")), options.pop("panel")
        assert_contains(read_panel(connection, found, panel, options, NOW), expected, panel)


SMALLEST_DIFFERENCES = table("| runs" + section("How to read a verdict").partition("| runs")[2])


@pytest.mark.parametrize("row", SMALLEST_DIFFERENCES, ids=lambda row: row["runs of each version"])
def test_smallest_difference(row: dict[str, str]) -> None:
    """The document states how many failures are noticed."""
    runs, before, failures = (int(re.sub(r"\D", "", value)) for value in row.values())
    assert newcombe(failures, runs, before, runs).low > 0
    assert newcombe(failures - 1, runs, before, runs).low < 0
