"""Badges for READMEs."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from tkserver.web.dashboard.badges import MAX_MESSAGE, Badge, badge, compact, shields_badge, svg_badge

NUMBERS: dict[str, dict[str, Any]] = {
    "users": {"30d": 1230},
    "runs": {"30d": None},
    "versions": {"30d": {"1.10.0": 50, "1.9.0": 900}},
}


@pytest.mark.parametrize(
    ("number", "text"),
    [(10, "10"), (990, "990"), (1230, "1.2k"), (9999, "9.9k"), (10_000, "10k"), (1_250_000, "1.2M"), (10**10, "10G")],
)
def test_numbers_are_compact(number: int, text: str) -> None:
    assert compact(number) == text


def test_messages() -> None:
    """Numbers are lower bounds; the version is the newest one; too few users are said to be too few."""
    assert badge("users", NUMBERS) == Badge("users", "1.2k+ / 30 days")
    assert badge("runs", NUMBERS) == Badge("runs", "too few users", is_known=False)
    assert badge("version", NUMBERS) == Badge("version", "1.10.0")
    assert badge("version", {"versions": {"30d": {}}}) == Badge("version", "too few users", is_known=False)


def test_format_of_shields() -> None:
    """The JSON has the keys that shields.io requires."""
    assert shields_badge(badge("runs", NUMBERS), 3600) == {
        "schemaVersion": 1,
        "label": "runs",
        "message": "too few users",
        "color": "lightgrey",
        "cacheSeconds": 3600,
    }


@pytest.mark.parametrize("version", ["1.0.0", "<script>&\"'", "\u202e\u00e9\u0007", "x" * 255, "🚀" * 30])
def test_svg_is_valid_with_any_version(version: str) -> None:
    """The SVG is well-formed, contains no script and no control characters, and is not too wide."""
    svg = svg_badge(badge("version", {"versions": {"30d": {version: 10}}}))
    root = ElementTree.fromstring(svg)
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "version"
    assert texts[1] == version[:MAX_MESSAGE].replace("\u202e", "\ufffd").replace("\u0007", "\ufffd")
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
    assert int(root.attrib["width"]) < 600
