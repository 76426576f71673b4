"""Records are printed as tables or as JSON."""

from __future__ import annotations

import pytest

from tkserver.cli.output import print_records


def test_no_records(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty list is a hint for people and an empty array for programs."""
    print_records([], as_json=False, empty="No apps")
    print_records([], as_json=True, empty="No apps")
    assert capsys.readouterr().out == "No apps\n[]\n"
