"""The ``tkserver`` command on a database, in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.command import Command, Done
from tests.support.database import Database


def run(database: Database, directory: Path, *arguments: str, **settings: str) -> Done:
    """Run it on a database, and wait until it has ended.

    :param directory: its working directory.
    :param settings: ``TK__`` variables.
    """
    return Command.on(database, directory, **settings)(*arguments)


def run_json(database: Database, directory: Path, *arguments: str, **settings: str) -> Any:
    """What it prints with ``--json``; it must succeed, and say nothing else."""
    done = run(database, directory, *arguments, "--json", **settings)
    assert (done.code, done.errors) == (0, "")
    return done.json
