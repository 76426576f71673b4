"""The metadata of the project in ``pyproject.toml``."""

from __future__ import annotations

import sys
from typing import Any

from packaging.requirements import Requirement

from tests.support.source import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = PYPROJECT["project"]


def runtime_requirements(*extras: str) -> list[Requirement]:
    """Return the requirements of an installation with these extras."""
    optional = [text for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    return [Requirement(text) for text in [*PROJECT["dependencies"], *optional]]


def python_versions() -> list[str]:
    """Return the supported versions of Python, such as ``3.10``, as the classifiers name them."""
    prefix = "Programming Language :: Python :: 3."
    return [f"3.{name.removeprefix(prefix)}" for name in PROJECT["classifiers"] if name.startswith(prefix)]
