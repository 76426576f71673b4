"""The ``tkserver`` command, as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.database import Database
from tests.support.process import environment

PROGRAM = Path(sys.executable).parent / "tkserver"


@dataclass(frozen=True)
class Done:
    """What became of a command."""

    code: int
    output: bytes
    errors: str

    @property
    def out(self) -> str:
        return self.output.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.output)


@dataclass(frozen=True)
class Command:
    """Runs ``tkserver`` with these settings, in this directory."""

    settings: Mapping[str, str]
    directory: Path

    @classmethod
    def on(cls, database: Database, directory: Path, **settings: str) -> Command:
        return cls({"TK__DATABASE__URL": database.dsn, **settings}, directory)

    def __call__(self, *arguments: str | Path, code: int | None = None) -> Done:
        """Run it, and wait until it has ended.

        :param code: the exit code that it must have.
        """
        ran = subprocess.run(
            [PROGRAM, *arguments],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=100,
        )
        done = Done(ran.returncode, ran.stdout, ran.stderr.decode())
        assert "Traceback" not in done.errors
        assert code in (None, done.code), done
        return done

    @property
    def environment(self) -> dict[str, str]:
        return {**environment(), **self.settings}
