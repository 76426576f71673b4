"""docs/architecture.md describes the code that is there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.source import ROOT

DOCUMENT = (ROOT / "docs" / "architecture.md").read_text()
CODE = re.findall(r"`([^`\n]+)`", DOCUMENT)


def test_named_files_exist() -> None:
    """Every file and directory that the document names exists, below the root or below ``tkserver/``."""
    named = {name for name in CODE if re.fullmatch(r"[\w./-]+(\.(py|md|yaml|sql)|/)", name)}
    assert len(named) > 30
    missing = [name for name in named if not any((base / name).exists() for base in _bases())]
    assert not missing


def test_diagram_names_exist() -> None:
    """Every file and directory in the diagram exists."""
    diagram = DOCUMENT.split("```mermaid")[1].split("```")[0]
    named = set(re.findall(r"[\[(\"]+([\w/]+(?:\.py|/))[\])\"]+", diagram))
    assert {"tap.py", "ingest/", "server/supervisor.py"} <= named
    missing = [name for name in named if not any((base / name).exists() for base in _bases())]
    assert not missing


def test_every_package_is_mentioned() -> None:
    """The document mentions every package, every top-level module, and every other directory of the repository."""
    package = ROOT / "tkserver"
    parts = [path for path in package.iterdir() if (path / "__init__.py").exists() or path.suffix == ".py"]
    expected = {f"tkserver/{path.name}{'/' if path.is_dir() else ''}" for path in parts} - {"tkserver/__init__.py"}
    expected |= {f"{name}/" for name in ("schema", "bench", "deploy", "tests")}
    unmentioned = {name for name in expected if not any(name in code for code in CODE)}
    nested = [path for path in package.rglob("__init__.py") if path.parent.parent.parent == package]
    unmentioned |= {path.parent.name for path in nested if f"{path.parent.name}/" not in DOCUMENT}
    assert not unmentioned


def test_named_objects_exist() -> None:
    """Every class, method and function of the package that the document names exists."""
    source = "\n".join(path.read_text() for path in (ROOT / "tkserver").rglob("*.py"))
    names = [name for name in CODE if re.fullmatch(r"[A-Z]\w+(\.\w+)?|makeService", name)]
    assert len(names) > 15
    missing = []
    for name in names:
        outer, _, inner = name.partition(".")
        if not re.search(rf"(class|def) {outer}\b|^{outer} =", source, re.MULTILINE) or (
            inner and not re.search(rf"def {inner}\b", source)
        ):
            missing.append(name)
    assert not missing


def _bases() -> list[Path]:
    package = ROOT / "tkserver"
    parts = (package / name for name in ("server", "web", "storage"))  # the rows and steps of these name their modules
    return [ROOT, package, *parts, ROOT / "tests"]
