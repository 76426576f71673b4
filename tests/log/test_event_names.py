"""Names of log events: each event has one, and the document lists them all."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import tkserver

ROOT = Path(tkserver.__file__).parent
DOCUMENT = (ROOT.parent / "docs" / "logs.md").read_text()

AUTH_FAILURE_EVENTS = {"auth_failures_limited", "proxy_not_named"}
"""Names that are passed to the logger in a variable."""

OTHER_EVENTS = {"failure", "warning", "output", "message", "unformattable", "request"}
"""Names of events that are not created by a call of a logger."""


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    """Return all calls of loggers, with their places."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("_log."):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_every_event_has_a_name() -> None:
    """Each call of a logger passes a name."""
    unnamed = [place for place, call in log_calls() if "event" not in {keyword.arg for keyword in call.keywords}]
    assert not unnamed


def test_every_name_is_documented() -> None:
    """The document lists exactly the names that exist."""
    table = DOCUMENT.split("## Names")[1]
    documented = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split(" | ")[0])}
    values = [keyword.value for _, call in log_calls() for keyword in call.keywords if keyword.arg == "event"]
    named = {value.value for value in values if isinstance(value, ast.Constant)}
    assert documented == named | AUTH_FAILURE_EVENTS | OTHER_EVENTS
