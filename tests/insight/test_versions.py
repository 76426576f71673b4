"""The order of versions."""

from __future__ import annotations

import random

import pytest

from tkserver.insight.versions import in_order


@pytest.mark.parametrize(
    "ordered",
    [
        ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0"],
        ["1.0.dev1", "1.0a1.dev1", "1.0a1", "1.0b2", "1.0rc1", "1.0", "1.0.post1", "1.0.1.2", "1!0.1"],
        ["0.9.0", "1.2", "1.2.1", "v1.10.0", "2.0.0"],
    ],
    ids=["SemVer", "PEP 440", "both"],
)
def test_standards(ordered: list[str]) -> None:
    """Versions are ordered by SemVer, otherwise by PEP 440, whatever the order in which they occurred."""
    shuffled = random.Random(1).sample(ordered, len(ordered))
    assert in_order(shuffled) == ordered


def test_other_versions() -> None:
    """Versions that follow no standard are lower than others, in the order in which they occurred."""
    assert in_order(["nightly", "1.0.0", "main", "nightly", "0.1.0"]) == ["nightly", "main", "0.1.0", "1.0.0"]
