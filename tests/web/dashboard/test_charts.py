"""Charts: valid SVG that shows the values and nothing else."""

from __future__ import annotations

from datetime import date, timedelta
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tkserver.web.dashboard.charts import HEIGHT, Chart, Series, bar, interval, nice_maximum, sparkline, time_chart
from tkserver.web.dashboard.formats import Formats

NUMBER = Formats().number
HOSTILE = "<script>alert('1')</script>\"&\u202e"


def days(count: int) -> list[str]:
    return [str(date(2026, 1, 1) + timedelta(number)) for number in range(count)]


def points_of(element: ET.Element) -> list[tuple[float, float]]:
    pairs = (point.split(",") for point in element.attrib["points"].split())
    return [(float(x), float(y)) for x, y in pairs]


def drawing_of(chart: Chart) -> ET.Element:
    return ET.fromstring(str(chart.drawing))


values = st.lists(st.one_of(st.none(), st.floats(0, 1e12)), min_size=1, max_size=40)


@given(values)
def test_lines_are_where_the_values_are(numbers: list[float | None]) -> None:
    """Each known value is a point of the line, at its day and height; unknown values are left out."""
    drawing = drawing_of(time_chart("Users", days(len(numbers)), [Series("day", numbers)], NUMBER))
    points = points_of(drawing.find("polyline"))  # type: ignore[arg-type]
    top = nice_maximum(max((number or 0 for number in numbers), default=0))
    known = [(day, number) for day, number in enumerate(numbers) if number is not None]
    assert [x for x, _ in points] == [day + 0.5 for day, _ in known]
    assert [y for _, y in points] == pytest.approx([HEIGHT * (1 - number / top) for _, number in known], abs=0.06)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=20))
def test_stacked_areas_add_up(numbers: list[tuple[float, float]]) -> None:
    """The upper edge of the last area is the sum of all series."""
    series = [Series("a", [first for first, _ in numbers]), Series("b", [second for _, second in numbers])]
    drawing = drawing_of(time_chart("Users", days(len(numbers)), series, NUMBER, stacked=True))
    last = drawing.findall("polygon")[-1]
    top = nice_maximum(max(map(sum, numbers)))
    upper = points_of(last)[: len(numbers)]
    assert [y for _, y in upper] == pytest.approx([HEIGHT * (1 - sum(pair) / top) for pair in numbers], abs=0.06)


@given(st.floats(0, 1e15))
def test_round_maximum(value: float) -> None:
    """The maximum of an axis is not smaller than the value, and not much larger."""
    top = nice_maximum(value)
    assert value <= top <= max(1, 2 * value)


def test_texts_are_escaped() -> None:
    """Texts of clients cannot become elements or attributes."""
    chart = time_chart(HOSTILE, days(3), [Series(HOSTILE, [1, 2, 3])], NUMBER, releases=[("2026-01-02", HOSTILE)])
    drawing = drawing_of(chart)
    assert {element.tag for element in drawing.iter()} <= {"svg", "g", "rect", "line", "polyline", "polygon", "title"}
    assert "<script" not in str(chart.drawing)
    assert drawing.attrib["aria-label"].startswith(HOSTILE)


def test_each_day_shows_its_values() -> None:
    """Each day has a tooltip with its values; the summary for screen readers names the extremes and the last value."""
    drawing = drawing_of(time_chart("Users", days(3), [Series("day", [1, None, 3000])], NUMBER))
    tooltips = [element.findtext("title") for element in drawing.findall("g[@class='days']/rect")]
    assert tooltips == ["2026-01-01\nday: 1", "2026-01-02", "2026-01-03\nday: 3,000"]
    assert drawing.attrib["aria-label"] == "Users, 2026-01-01 to 2026-01-03: day from 1 to 3,000, last 3,000"


def test_releases_and_days_that_are_still_filling() -> None:
    """Releases are lines on their days, and days that are still filling are marked."""
    releases = [("2025-12-31", "0.9"), ("2026-01-02", "1.0")]
    chart = time_chart(
        "Users", days(3), [Series("day", [1, 2, 3])], NUMBER, releases=releases, filling_from="2026-01-03"
    )
    drawing = drawing_of(chart)
    assert [line.attrib["x1"] for line in drawing.findall("line")] == ["1.5"]
    assert [(rect.attrib["x"], rect.attrib["width"]) for rect in drawing.findall("rect")] == [("2", "1")]
    assert chart.releases == [("2026-01-02", "1.0")]
    assert chart.labelled_days == ["2026-01-01", "2026-01-02", "2026-01-03"]


def test_empty_chart() -> None:
    """A chart without days is valid, too."""
    chart = time_chart("Users", [], [Series("day", [])], NUMBER, stacked=True)
    assert drawing_of(chart).attrib["aria-label"] == "Users: no days"
    assert chart.labelled_days == []


@pytest.mark.parametrize(("share", "width"), [(None, "0.0"), (0.5, "50.0"), (7, "100.0"), (-1, "0.0")])
def test_bars(share: float | None, width: str) -> None:
    """A bar is as long as the share, and never longer than its track."""
    assert ET.fromstring(str(bar(share))).findall("rect")[1].attrib["width"] == width


def test_interval() -> None:
    """An interval is visible even if it is very short."""
    _, scale, mark = ET.fromstring(str(interval(0.1, 0.2, 0.3, 0.4))).findall("rect")
    assert (scale.attrib["x"], scale.attrib["width"], mark.attrib["x"]) == ("25.0", "50.0", "50.0")
    assert ET.fromstring(str(interval(0.2, 0.2, 0.2, 0.4))).findall("rect")[1].attrib["width"] == "0.5"


def test_sparkline() -> None:
    """A sparkline reaches from the lowest to the highest value."""
    line = ET.fromstring(str(sparkline([0, 10, None, 5]))).find("polyline")
    assert line is not None
    assert [y for _, y in points_of(line)] == [100, 0, 100, 50]
