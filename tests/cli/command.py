"""The ``tkserver`` command, run as a process as an operator runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.database import Database
from tests.process import PATIENCE, environment

TKSERVER = Path(sys.executable).with_name("tkserver")


def run(database: Database, directory: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run it on a database, and wait until it has ended.

    :param directory: its working directory.
    :param settings: ``TK__`` variables.
    """
    return subprocess.run(
        [str(TKSERVER), *arguments],
        cwd=directory,
        env={**environment(), "TK__DATABASE__URL": database.dsn, **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )


def run_json(database: Database, directory: Path, *arguments: str, **settings: str) -> Any:
    """What it prints with ``--json``; it must succeed, and say nothing else."""
    done = run(database, directory, *arguments, "--json", **settings)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return json.loads(done.stdout)
