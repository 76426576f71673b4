"""The lock files in ``deploy/`` agree with ``pyproject.toml`` and the Dockerfile."""

from __future__ import annotations

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.lock import LOCKS, packages_in, text_of
from tests.support.pyproject import PYPROJECT, runtime_requirements
from tests.support.source import ROOT

each_lock = pytest.mark.parametrize("lock", LOCKS)


@each_lock
def test_every_package_has_a_version_and_hashes(lock: str) -> None:
    """Each entry names exactly one version and the SHA-256 hashes of its files."""
    packages = packages_in(lock)
    assert packages
    for name, package in packages.items():
        assert name == canonicalize_name(name)
        assert package.version
        assert package.hashes, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in package.hashes), name


@each_lock
def test_lock_contains_no_location(lock: str) -> None:
    """A lock file contains no URL, no option that names a package index, and no path of a machine."""
    text = text_of(lock)
    assert "://" not in text
    assert not any(package.requirement.url for package in packages_in(lock).values())
    assert set(re.findall(r"--[a-z-]+", text)) == {"--hash"}
    assert not re.findall(r"(?m)^\s*-\w", text)
    assert not re.findall(r"(?:^|\s)[/~]\S", text)


def satisfied(requirement: Requirement, lock: str) -> bool:
    """Return True if the locked version of a package satisfies the requirement."""
    return requirement.specifier.contains(packages_in(lock)[canonicalize_name(requirement.name)].version)


@pytest.mark.parametrize("requirement", runtime_requirements("redis"), ids=str)
def test_locked_version_satisfies_runtime_requirement(requirement: Requirement) -> None:
    """The lock file contains each package that the server in the image requires, in a version that it allows."""
    assert satisfied(requirement, "requirements.lock")


@pytest.mark.parametrize("requirement", [*map(Requirement, PYPROJECT["build-system"]["requires"])], ids=str)
def test_locked_version_satisfies_build_requirement(requirement: Requirement) -> None:
    """The lock file contains each package that builds the server, in a version that it allows."""
    assert satisfied(requirement, "build-requirements.lock")


@each_lock
def test_lock_is_for_the_python_of_the_image(lock: str) -> None:
    """The packages are locked for the version of Python that the Dockerfile names."""
    versions = set(re.findall(r"^FROM python:(\S+)-slim\b", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE))
    assert set(re.findall(r"locked for Python (\S+)\.$", text_of(lock), re.MULTILINE)) == versions


@each_lock
def test_lock_names_its_update_command(lock: str) -> None:
    """The header of a lock file names the command that writes it."""
    (command,) = re.findall(r"^# Do not edit\. To update: (\S+)$", text_of(lock), re.MULTILINE)
    assert lock in (ROOT / command).read_text()
