"""The header ``X-SDK-Version``: which SDKs can only parse flat errors, and the name and version of an SDK."""

from __future__ import annotations

import pytest

from tkserver.wire.sdk import name_and_version, reads_flat_errors


@pytest.mark.parametrize(
    "version", ["0", "0.2.9", "0.3", "0.3.0", " 0.3.0 ", "0.3.0-alpha.1", "0.3.0+build", "00.03.00"]
)
def test_flat(version: str) -> None:
    """Version 0.3.0 and older ones can only parse flat errors."""
    assert reads_flat_errors(f"telemetry-kit-rust/{version}".replace("/ ", "/"))


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "0.3.0",
        "telemetry-kit-rust",
        "telemetry-kit-rust/",
        "telemetry-kit-rust/0.3.1",
        "telemetry-kit-rust/0.3.1-alpha",
        "telemetry-kit-rust/0.10.0",
        "telemetry-kit-rust/1.0",
        "telemetry-kit-rust/0.3.0.1",
        "telemetry-kit-rust/v0.3.0",
        "telemetry-kit-rust/-1.0.0",
        "telemetry-kit-rust/0.3.0/2",
        "telemetry-kit-rust/0." + "0" * 10_000,
        "telemetry-kit-rust/\u0660.\u0661.\u0660",
        "telemetry-kit-python/0.3.0",
        "x telemetry-kit-rust/0.3.0",
    ],
    ids=lambda header: ascii(header)[:40],
)
def test_not_flat(header: str | None) -> None:
    """Newer versions, other SDKs and everything that is not a version get the format of the API."""
    assert not reads_flat_errors(header)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, (None, None)),
        ("", (None, None)),
        ("telemetry-kit-rust/0.3.0", ("telemetry-kit-rust", "0.3.0")),
        ("mine", ("mine", None)),
        ("/1", (None, "1")),
        ("a\x1b[2J\0/ä", ("a?[2J?", "?")),
        ("n" * 500 + "/1", ("n" * 100, None)),
    ],
    ids=ascii,
)
def test_name_and_version(header: str | None, expected: tuple[str | None, str | None]) -> None:
    """Name and version are short, and contain only printable ASCII characters."""
    assert name_and_version(header) == expected
