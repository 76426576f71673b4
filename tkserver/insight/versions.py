"""The order of versions: by SemVer, otherwise by PEP 440, otherwise by first occurrence."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any

from packaging.version import InvalidVersion
from packaging.version import Version as PythonVersion
from semver import Version as SemanticVersion

Key = tuple[Any, ...]

_FINAL: Key = ((3, 0, ""),)
"""Follows all pre-releases of the same release."""

_DEVELOPMENT = (0, -1, "")
"""Precedes all other pre-releases."""


def in_order(versions: Iterable[str]) -> list[str]:
    """Return versions from the lowest to the highest.

    Versions that follow neither standard are lower than all others.

    :param versions: in the order of their first occurrences.
    """
    unique = list(dict.fromkeys(versions))
    position = {version: index for index, version in enumerate(unique)}
    return sorted(unique, key=lambda version: (_key(version), position[version]))


@lru_cache(maxsize=4096)
def _key(version: str) -> Key:
    """Return a value that orders a version among others, whichever standards they follow."""
    text = version.removeprefix("v")
    with suppress(ValueError):
        semantic = SemanticVersion.parse(text)
        return (1, 0, (semantic.major, semantic.minor, semantic.patch), _semantic_stage(semantic.prerelease), 0)
    with suppress(InvalidVersion):
        python = PythonVersion(text)
        release = (*python.release, *(0,) * (3 - len(python.release)))
        post = -1 if python.post is None else python.post
        return (1, python.epoch, release, _python_stage(python), post)
    return (0,)


def _semantic_stage(prerelease: str | None) -> Key:
    """Return the key of a pre-release: numbers are lower than words."""
    if prerelease is None:
        return _FINAL
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in prerelease.split("."))


def _python_stage(version: PythonVersion) -> Key:
    development: Key = () if version.dev is None else (_DEVELOPMENT, (0, version.dev, ""))
    if version.pre is None:
        return development or _FINAL
    letter, number = version.pre
    return ((1, 0, letter), (0, number, ""), *(development or _FINAL))
