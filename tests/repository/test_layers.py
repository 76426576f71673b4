"""Imports point one way, so that each layer can be read and changed without those above it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tkserver

ROOT = Path(tkserver.__file__).parent

LAYERS = {
    "log": {"record"},
    "failures": set[str](),
    "record": set[str](),
    "config": set[str](),
    "wire": set[str](),
    "storage": {"log", "wire"},
    "limits": {"log", "wire"},
    "ingest": {"log", "record", "failures", "wire", "storage", "limits"},
    "web": {"log", "record", "failures", "wire", "storage", "ingest", "limits"},
    "lag": set[str](),
    "metrics": {"record", "wire", "storage", "ingest", "limits", "web"},
    "database": {"config", "storage"},
    "client": {"wire"},
    "cli": {"config", "client", "database", "storage", "wire"},
    "parts": {"log", "lag", "metrics", "config", "storage", "limits", "ingest", "web"},
    "service": {"log", "config", "database", "parts", "storage", "web"},
    "tap": {"log", "config", "service", "storage"},
}
"""Each part of the package, and those that it may import."""

PURE = ("twisted", "klein", "txpostgres", "psycopg2", "time", "random", "os", "socket")
"""What ``wire`` must not import: reactor, database, clock, randomness."""

MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, for type checkers only or not."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_direction(path: Path) -> None:
    """A part imports itself, the version, and what lies below it."""
    allowed = {part_of(path), "__version__", *LAYERS[part_of(path)]}
    own = {name.split(".")[1] for name in imports(path) if name.startswith("tkserver.")}
    assert own <= allowed


@pytest.mark.parametrize("path", [path for path in MODULES if part_of(path) == "wire"], ids=lambda path: path.name)
def test_wire_is_pure(path: Path) -> None:
    """The contract itself knows no reactor, no database and no clock."""
    assert not {name for name in imports(path) if name.split(".")[0] in PURE}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_reactor_is_an_argument(path: Path) -> None:
    """Only what twistd calls takes the global reactor."""
    if part_of(path) != "tap":
        assert "twisted.internet.reactor" not in set(imports(path))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_drivers_stay_in_storage(path: Path) -> None:
    """Nobody else speaks to the database's drivers; the settings look at a URL's form, commands at errors."""
    if part_of(path) not in ("storage", "config", "cli"):
        assert not {name for name in imports(path) if name.split(".")[0] in ("psycopg2", "txpostgres", "yoyo")}
