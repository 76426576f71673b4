"""Charts as SVG elements. Pure logic.

A chart is drawn in a coordinate system in which a day is one unit wide, and is stretched to the width of the page.
Therefore it contains no text: labels are HTML, so that they are readable on a phone, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

HEIGHT = 100
"""The height of a chart, in units."""

COLOURS = 8
"""The number of series with a colour of their own. They have the classes ``c0``, ``c1`` and so on."""


@dataclass(frozen=True)
class Series:
    """A series of a chart.

    :ivar values: one for each day; ``None`` where it is unknown.
    :ivar style: ``area``, ``line`` or ``bars``.
    """

    label: str
    values: Sequence[float | None]
    colour: int = 0
    style: str = "line"


@dataclass(frozen=True)
class Chart:
    """A chart with the labels around it.

    :ivar drawing: an SVG element.
    :ivar maximum: the value at the upper edge; 0 is at the lower one.
    :ivar releases: the days of releases with their versions.
    """

    title: str
    drawing: Markup
    maximum: float
    days: Sequence[str]
    series: Sequence[Series]
    releases: Sequence[tuple[str, str]] = field(default_factory=list)

    @property
    def labelled_days(self) -> Sequence[str]:
        """The first, the middle and the last day."""
        return [self.days[0], self.days[len(self.days) // 2], self.days[-1]] if self.days else []


def time_chart(
    title: str,
    days: Sequence[str],
    series: Sequence[Series],
    number: Callable[[float | None], str],
    *,
    releases: Iterable[tuple[str, str]] = (),
    filling_from: str = "9999",
    stacked: bool = False,
) -> Chart:
    """Return a chart with a value for each day.

    :param number: formats a value.
    :param releases: days and versions.
    :param filling_from: the first day for which more events are expected.
    :param stacked: draw the series on top of each other.
    """
    top = nice_maximum(_highest(series, stacked=stacked))
    shown = [(day, version) for day, version in releases if days and days[0] <= day <= days[-1]]
    position = {day: index for index, day in enumerate(days)}
    parts = [_grid(len(days)), *_filling(days, filling_from)]
    parts += _stacked(series, top) if stacked else [_drawn(one, top) for one in series]
    parts += [
        Markup('<line class="release" x1="{0}" x2="{0}" y1="0" y2="100"><title>{1}</title></line>').format(
            position[day] + 0.5, f"{day}: release {version}"
        )
        for day, version in shown
        if day in position
    ]
    parts += _tooltips(days, series, number)
    drawing = Markup(
        '<svg class="plot" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(max(1, len(days)), HEIGHT, _summary(title, days, series, number), Markup("").join(parts))
    return Chart(title, drawing, top, days, series, shown)


def nice_maximum(value: float) -> float:
    """Return the smallest round number that is not smaller than a value: one of 1, 2, 3, 4, 5, 6, 8, 10, 20, …"""
    if value <= 1:
        return 1
    power = 10 ** math.floor(math.log10(value))
    return float(next(step * power for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power >= value))


def bar(share: float | None) -> Markup:
    """Return a horizontal bar.

    :param share: from 0 to 1.
    """
    width = round(100 * min(1.0, max(0.0, share or 0.0)), 1)
    return Markup(
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="8"/><rect class="c0" width="{}" height="8"/></svg>'
    ).format(width)


def sparkline(values: Sequence[float | None]) -> Markup:
    """Return a small line without labels."""
    top = max((value or 0 for value in values), default=0) or 1
    points = " ".join(f"{index},{_y(value or 0, top)}" for index, value in enumerate(values))
    return Markup(
        '<svg class="sparkline" viewBox="0 -4 {} 108" preserveAspectRatio="none" aria-hidden="true">'
        '<polyline class="line c0" points="{}"/></svg>'
    ).format(max(1, len(values) - 1), points)


def interval(low: float, value: float, high: float, top: float) -> Markup:
    """Return a value with its confidence interval on a scale from 0 to ``top``."""
    left, middle, right = (round(100 * min(1.0, part / top), 1) for part in (low, value, high))
    return Markup(
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="8"/><rect class="range" x="{}" width="{}" height="8"/>'
        '<rect class="mark" x="{}" width="1" height="8"/></svg>'
    ).format(left, max(0.5, round(right - left, 1)), min(99, middle))


def _highest(series: Sequence[Series], *, stacked: bool) -> float:
    if not stacked:
        return max((value or 0 for one in series for value in one.values), default=0)
    return max(
        (sum(value or 0 for value in day) for day in zip(*(one.values for one in series), strict=True)), default=0
    )


def _element(name: str, css_class: str, content: str) -> Markup:
    """Return an element.

    :param content: SVG elements that contain only numbers.
    """
    return Markup('<{0} class="{1}">{2}</{0}>').format(name, css_class, Markup(content))  # noqa: S704


def _y(value: float, top: float) -> float:
    return round(HEIGHT - HEIGHT * value / top, 1)


def _grid(width: int) -> Markup:
    lines = [f'<line x1="0" x2="{max(1, width)}" y1="{y}" y2="{y}"/>' for y in (0, 25, 50, 75, 100)]
    return _element("g", "grid", "".join(lines))


def _filling(days: Sequence[str], filling_from: str) -> list[Markup]:
    first = next((index for index, day in enumerate(days) if day >= filling_from), None)
    if first is None:
        return []
    return [
        Markup('<rect class="filling" x="{}" width="{}" height="100"><title>{}</title></rect>').format(
            first, len(days) - first, f"still filling from {days[first]} on: more events are expected"
        )
    ]


def _points(values: Sequence[float | None], top: float) -> str:
    """Return the points of a line through the middles of days."""
    return " ".join(f"{index + 0.5},{_y(value, top)}" for index, value in enumerate(values) if value is not None)


def _drawn(series: Series, top: float) -> Markup:
    colour = f"c{series.colour % COLOURS}"
    if series.style == "bars":
        heights = [(index + 0.1, round(HEIGHT - _y(value or 0, top), 1)) for index, value in enumerate(series.values)]
        bars = [f'<rect x="{x:.1f}" y="{HEIGHT - height:.1f}" width="0.8" height="{height}"/>' for x, height in heights]
        return _element("g", colour, "".join(bars))
    line = Markup('<polyline class="line {}" points="{}"/>').format(colour, _points(series.values, top))
    if series.style != "area" or not series.values:
        return line
    points = f"0.5,{HEIGHT} {_points(series.values, top)} {len(series.values) - 0.5},{HEIGHT}"
    return Markup('<polygon class="area {}" points="{}"/>').format(colour, points) + line


def _stacked(series: Sequence[Series], top: float) -> list[Markup]:
    """Draw areas on top of each other, the first at the bottom."""
    size = len(series[0].values) if series else 0
    below = [0.0] * size
    parts = []
    for one in series:
        above = [low + (value or 0) for low, value in zip(below, one.values, strict=True)]
        upper, lower = _points(above, top), _points(below, top).split(" ")
        points = f"{upper} {' '.join(reversed(lower))}"
        parts.append(Markup('<polygon class="stack c{}" points="{}"/>').format(one.colour % COLOURS, points))
        below = above
    return parts


def _tooltips(days: Sequence[str], series: Sequence[Series], number: Callable[[float | None], str]) -> list[Markup]:
    """Return an invisible area for each day, which shows its values."""
    rects = []
    for index, day in enumerate(days):
        values = [f"{one.label}: {number(one.values[index])}" for one in series if one.values[index] is not None]
        text = "\n".join([day, *values])
        rects.append(Markup('<rect x="{}" width="1" height="100"><title>{}</title></rect>').format(index, text))
    return [Markup('<g class="days">{}</g>').format(Markup("").join(rects))]


def _summary(title: str, days: Sequence[str], series: Sequence[Series], number: Callable[[float | None], str]) -> str:
    """Return what a chart shows, for those who cannot see it."""
    if not days:
        return f"{title}: no days"
    parts = []
    for one in series:
        known = [value for value in one.values if value is not None]
        if known:
            parts.append(f"{one.label} from {number(min(known))} to {number(max(known))}, last {number(known[-1])}")
    return f"{title}, {days[0]} to {days[-1]}: {'; '.join(parts) or 'no values'}"
