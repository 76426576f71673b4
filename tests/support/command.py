"""The command ``tkserver``, as a separate process or in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from tests.support.client import App
from tests.support.database import Database
from tests.support.process import environment
from tkserver.cli.main import main


def subcommands(group: click.Group) -> dict[str, click.Command]:
    """Return the commands of a group by their names."""
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


PROGRAM = Path(sys.executable).parent / "tkserver"

TIMEOUT = 100
"""Seconds within which a command must end."""


@dataclass(frozen=True)
class CompletedCommand:
    """The result of a command.

    :ivar code: the exit code.
    :ivar output: the bytes on standard output.
    :ivar errors: the text on standard error.
    """

    code: int
    output: bytes
    errors: str

    def check(self, code: int | None) -> CompletedCommand:
        """Check the exit code, unless it is ``None``."""
        assert code in (None, self.code), self
        return self

    @property
    def out(self) -> str:
        """The text on standard output."""
        return self.output.decode()

    @property
    def json(self) -> Any:
        """The JSON on standard output."""
        return json.loads(self.output)

    @property
    def app(self) -> App:
        """The application whose credentials are the JSON on standard output."""
        credentials = self.json
        return App(credentials["org_id"], credentials["app_id"], credentials["token"], credentials["secret"])


@dataclass(frozen=True)
class Command:
    """Runs ``tkserver`` with these settings, in this directory."""

    settings: Mapping[str, str]
    directory: Path

    @classmethod
    def on(cls, database: Database, directory: Path, **settings: str) -> Command:
        """Return the command for a database."""
        return cls({"TK__DATABASE__URL": database.dsn, **settings}, directory)

    def __call__(self, *arguments: str | Path, code: int | None = None) -> CompletedCommand:
        """Run the command, and wait until it has ended. It must not print a traceback.

        :param code: the expected exit code; ``None`` accepts any.
        """
        process = subprocess.run(
            [PROGRAM, *arguments],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
        )
        completed = CompletedCommand(process.returncode, process.stdout, process.stderr.decode())
        assert "Traceback" not in completed.errors
        return completed.check(code)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the process."""
        return {**environment(), **self.settings}


@dataclass(frozen=True)
class InProcessCommand:
    """Runs ``tkserver`` in this process and in the current directory, which is much faster.

    It cannot run ``send``, which needs the reactor, and cannot be used in threads.

    :ivar settings: ``TK__`` variables.
    """

    settings: Mapping[str, str]

    def __call__(self, *arguments: str, code: int | None = 0, **settings: str) -> CompletedCommand:
        """Run the command.

        :param code: the expected exit code; ``None`` accepts any.
        :param settings: further ``TK__`` variables.
        """
        inherited = dict.fromkeys(name for name in os.environ if name.startswith("TK__"))
        runner = CliRunner(env={**inherited, **self.settings, **settings})
        result = runner.invoke(main, arguments, prog_name="tkserver")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return CompletedCommand(result.exit_code, result.stdout_bytes, result.stderr).check(code)


def run(database: Database, directory: Path, *arguments: str, **settings: str) -> CompletedCommand:
    """Run the command on a database, and wait until it has ended.

    :param directory: its working directory.
    :param settings: ``TK__`` variables.
    """
    return Command.on(database, directory, **settings)(*arguments)


def run_json(database: Database, directory: Path, *arguments: str, **settings: str) -> Any:
    """Run the command with ``--json`` and return what it prints. It must succeed and print no errors."""
    completed = run(database, directory, *arguments, "--json", **settings)
    assert (completed.code, completed.errors) == (0, "")
    return completed.json
