"""Fixtures for commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import InProcessCommand
from tests.support.database import Database
from tests.support.process import Twistd


@pytest.fixture
def tkserver(database: Database, directory: Path, monkeypatch: pytest.MonkeyPatch) -> InProcessCommand:
    """The command on :func:`database`, in :func:`directory`."""
    monkeypatch.chdir(directory)
    return InProcessCommand({"TK__DATABASE__URL": database.dsn})


@pytest.fixture
def twistd(database: Database, directory: Path) -> Iterator[Twistd]:
    """A server on :func:`database`, in another process."""
    with Twistd(directory, {"TK__DATABASE__URL": database.dsn}) as twistd:
        twistd.wait_until_ready()
        yield twistd
