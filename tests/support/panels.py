"""Comparison of all panels with the naive computation of statistics."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.support.client import App
from tests.support.naive_statistics import NaiveStatistics, RawEvent
from tkserver.insight import stats
from tkserver.insight.panels import APPLICABLE_FILTERS, PANELS
from tkserver.storage.blocking import Connection


def check_panels(
    connection: Connection,
    app: App,
    events: list[RawEvent],
    parameters: Mapping[str, str],
    now: datetime,
    zone: str = "UTC",
    ignored: Collection[str] = (),
) -> None:
    """Compare all panels with the naive computation.

    :param parameters: of the panels. Each panel gets those that it has.
    :param zone: the time zone of the application.
    :param ignored: names of values that are not compared.
    """
    for panel in PANELS:
        applicable = {"days", "from", "to", "ci", *APPLICABLE_FILTERS[panel]}
        own = {name: value for name, value in parameters.items() if name in applicable}
        actual = stats.compute(connection, app.app_id, app.org_id, "x", panel, own, now)
        first, last = date.fromisoformat(actual["from"]), date.fromisoformat(actual["to"])
        filters = tuple((name, value) for name, value in actual["filters"].items() if name != "ci")
        today = now.astimezone(ZoneInfo(zone)).date()
        naive = NaiveStatistics(events, first, last, today, own.get("ci", "exclude"), filters, zone)
        try:
            expected = naive.panel(panel)
            assert_equal({name: actual[name] for name in expected}, expected, panel, ignored)
        except AssertionError as error:
            raise AssertionError(f"{panel} {own}: {error}") from error


def assert_equal(actual: Any, expected: Any, path: str = "", ignored: Collection[str] = ()) -> None:
    """Compare JSON; percentiles may differ by 5 %, and other fractions by rounding errors."""
    if path.rpartition(".")[2] in ignored:
        return
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), path
        for key in expected:
            assert_equal(actual[key], expected[key], f"{path}.{key}", ignored)
    elif isinstance(expected, list):
        assert len(actual) == len(expected), (path, actual, expected)
        for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_equal(one, other, f"{path}[{index}]", ignored)
    elif path.endswith(("_ms", "_s")) and expected is not None:
        assert actual == pytest.approx(expected, rel=0.05, abs=0.001), path
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected), path
    else:
        assert actual == expected, (path, actual, expected)
