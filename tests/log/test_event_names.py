"""Every event has a name, and every name is told of."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import tkserver

ROOT = Path(tkserver.__file__).parent
DOCUMENT = (ROOT.parent / "docs" / "logs.md").read_text()


def calls() -> Iterator[tuple[str, ast.Call]]:
    """The places where something is logged."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("_log."):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_every_event_has_a_name() -> None:
    unnamed = [place for place, call in calls() if "event" not in {keyword.arg for keyword in call.keywords}]
    assert not unnamed


def test_every_name_is_documented() -> None:
    table = DOCUMENT.split("## Names")[1]
    told = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split(" | ")[0])}
    values = [keyword.value for _, call in calls() for keyword in call.keywords if keyword.arg == "event"]
    named = {value.value for value in values if isinstance(value, ast.Constant)}
    of_limits = {"auth_failures_limited", "proxy_not_named"}  # which are passed on to one call
    of_others = {"failure", "warning", "output", "message", "unformattable"}
    assert told == named | of_limits | of_others | {"request"}
