"""Imports go only from higher layers to lower layers, so that a layer can be changed without those above it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.source import ROOT

PACKAGE = ROOT / "tkserver"
TESTS = ROOT / "tests"

LAYERS: dict[str, set[str]] = {
    "log": set(),
    "deferreds": {"log"},
    "config": set(),
    "wire": set(),
    "demo": set(),
    "spreadsheets": set(),
    "storage": {"log", "deferreds", "wire"},
    "limits": {"log", "wire"},
    "ingest": {"log", "deferreds", "wire", "storage", "limits"},
    "insight": {"storage"},
    "operations": {"config", "wire", "demo", "spreadsheets", "storage", "insight"},
    "client": {"wire"},
    "web/listen": {"log"},
    "web/http": {"log", "deferreds", "wire"},
    "web": {"log", "wire", "storage", "limits", "ingest", "insight", "web/listen", "web/http"},
    "web/dashboard": {"log", "spreadsheets", "wire", "storage", "insight", "web", "web/http"},
    "server": {
        *("log", "config", "wire", "storage", "limits", "ingest", "insight", "operations"),
        *("web", "web/dashboard", "web/listen", "web/http"),
    },
    "cli": {"config", "wire", "demo", "storage", "operations", "client"},
    "tap": {"log", "config", "storage", "server"},
}
"""The layers from low to high, each with the layers that it may import."""

IMPURE = ("twisted", "klein", "txpostgres", "psycopg2", "time", "random", "os", "socket")
"""What ``wire`` must not import: reactor, database, clock, randomness."""

DRIVERS = ("psycopg2", "txpostgres", "yoyo")

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
TEST_FILES = sorted(TESTS.rglob("*.py"))

each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))


def layer_of(module: str) -> str:
    """Return the layer of a module of the package, such as ``web/http`` for ``tkserver.web.http.request``."""
    parts = module.split(".")[1:]
    nested = "/".join(parts[:2])
    return nested if nested in LAYERS else parts[0]


def module_name(path: Path) -> str:
    """Return the name by which a file of the repository is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imported_names(path: Path) -> frozenset[str]:
    """Return the dotted names that a file imports, wherever in the file, and also those for type checkers only."""
    return frozenset(_imported_names(ast.parse(path.read_text())))


def _imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer that they import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def distributions(path: Path) -> set[str]:
    """Return the top-level packages that a file imports."""
    return {name.split(".")[0] for name in imported_names(path)}


def import_graph() -> dict[str, set[str]]:
    """Return the modules of the package, each with the modules of the package that it imports."""
    names = {module_name(path): path for path in PACKAGE.rglob("*.py")}

    def defining_module(name: str) -> str:
        return name if name in names else defining_module(name.rpartition(".")[0])

    return {
        module: {defining_module(name) for name in imported_names(path) if name.split(".")[0] == "tkserver"}
        for module, path in names.items()
    }


def test_layers_are_listed_from_low_to_high() -> None:
    """A layer may only import layers that are listed before it."""
    lower: set[str] = set()
    for layer, allowed in LAYERS.items():
        assert allowed <= lower, layer
        lower.add(layer)


@each_module
def test_imports_go_to_lower_layers(path: Path) -> None:
    """A module imports only its own layer, the version, and the layers that its layer may import."""
    module = module_name(path)
    allowed = {layer_of(module), "__version__", *LAYERS[layer_of(module)]}
    imported = {layer_of(name) for name in imported_names(path) if name.startswith("tkserver.")}
    assert imported <= allowed


def test_there_are_no_import_cycles() -> None:
    """No module imports itself through others; imports within functions and for type checkers count."""
    try:
        TopologicalSorter(import_graph()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("path", sorted((PACKAGE / "wire").glob("*.py")), ids=lambda path: path.name)
def test_wire_is_pure(path: Path) -> None:
    """The wire contract uses no reactor, no database, no clock and no randomness."""
    assert not distributions(path) & {*IMPURE}


@pytest.mark.parametrize("path", sorted((PACKAGE / "demo").glob("*.py")), ids=lambda path: path.name)
def test_population_is_pure(path: Path) -> None:
    """The simulated population uses no reactor, no database and no clock; a source of randomness is an argument."""
    assert not distributions(path) & {*IMPURE} - {"random"}
    assert {name for name in imported_names(path) if name.startswith("random.")} <= {"random.Random"}


@each_module
def test_only_tap_uses_the_global_reactor(path: Path) -> None:
    """Every module except the ``twistd`` plugin takes the reactor as an argument."""
    if path != PACKAGE / "tap.py":
        assert "twisted.internet.reactor" not in imported_names(path)


@each_module
def test_only_storage_uses_database_drivers(path: Path) -> None:
    """Only ``storage`` imports the database drivers, and ``config`` to parse the URL of the database."""
    if layer_of(module_name(path)) not in ("storage", "config"):
        assert not distributions(path) & {*DRIVERS}


@pytest.mark.parametrize("path", sorted((PACKAGE / "operations").glob("*.py")), ids=lambda path: path.name)
def test_operations_do_not_print(path: Path) -> None:
    """Operator actions return their results: the command line and the dashboard present them differently."""
    assert not distributions(path) & {"click", "rich"}
    calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    assert "print" not in {function.id for function in calls if isinstance(function, ast.Name)}


def test_at_most_one_module_is_named_errors() -> None:
    """Two modules do not share the name ``errors.py``."""
    assert len([path for path in MODULES if path.name == "errors.py"]) <= 1


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_tests_do_not_import_test_modules(path: Path) -> None:
    """Code that several test modules need is in ``tests/support/``."""
    parts = {part for name in imported_names(path) if name.startswith("tests.") for part in name.split(".")}
    assert not {part for part in parts if part.startswith("test_") or part == "conftest"}
