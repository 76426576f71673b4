"""Read the lock files in ``deploy/``, from which the Dockerfile installs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from packaging.requirements import Requirement

from tests.support.source import ROOT

LOCKS = ("build-requirements.lock", "requirements.lock")


@dataclass(frozen=True)
class LockedPackage:
    """A package with exactly one version.

    :ivar hashes: the hashes of its files, such as ``sha256:0f…``.
    """

    requirement: Requirement
    hashes: tuple[str, ...]

    @property
    def version(self) -> str:
        (specifier,) = self.requirement.specifier
        assert specifier.operator == "=="
        return specifier.version

    @property
    def applies(self) -> bool:
        """True if this version of Python needs the package."""
        return self.requirement.marker is None or self.requirement.marker.evaluate()


def text_of(lock: str) -> str:
    return (ROOT / "deploy" / lock).read_text()


def packages_in(lock: str) -> Mapping[str, LockedPackage]:
    """Return the packages of a lock file by name."""
    lines = re.sub(r"(?m)^\s*#.*\n", "", text_of(lock)).replace("\\\n", " ").splitlines()
    entries = [line.split("--hash=") for line in lines if line.strip()]
    packages = [LockedPackage(Requirement(entry), tuple(map(str.strip, hashes))) for entry, *hashes in entries]
    return {package.requirement.name: package for package in packages}
