"""The ``tkserver`` command, run as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.database import Database
from tests.process import environment


@dataclass(frozen=True)
class Ran:
    """What a command has said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Command:
    """``tkserver`` with these settings, in a directory of its own."""

    directory: Path
    settings: Mapping[str, str]

    @classmethod
    def on(cls, database: Database, directory: Path) -> Command:
        return cls(directory, {"TK__DATABASE__URL": database.dsn})

    def __call__(self, *arguments: str, code: int = 0) -> Ran:
        """Run it, and see that it ends with the expected exit code."""
        program = str(Path(sys.executable).with_name("tkserver"))
        done = subprocess.run(
            [program, *arguments],
            cwd=self.directory,
            env={**environment(), **self.settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)
