"""Logs in the JSON format."""

from __future__ import annotations

import json
import re
from typing import Any

Line = dict[str, Any]


def parse_json_log(text: str) -> list[Line]:
    """Return the lines of a log, after a check that each is one flat object with all common keys and without nulls."""
    lines: list[Line] = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["time"])
        assert line["level"] in ("debug", "info", "warn", "error", "critical")
        assert line["event"]
        assert "message" in line
        assert line["logger"]
        assert not [value for value in line.values() if value is None or isinstance(value, (dict, list))]
    return lines


def lines_of_event(name: str, lines: list[Line]) -> list[Line]:
    """Return the lines that have this event name."""
    return [line for line in lines if line["event"] == name]
