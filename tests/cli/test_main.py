"""Behavior that all commands have in common."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import Command, InProcessCommand, subcommands
from tkserver.cli.main import main


def test_every_command_has_help(tkserver: InProcessCommand) -> None:
    """The help of every command says what the command does."""
    commands: list[tuple[str, ...]] = [()]
    for name, command in subcommands(main).items():
        commands += [(name,), *((name, subcommand) for subcommand in getattr(command, "commands", {}))]
    for path in commands:
        output = tkserver(*path, "--help").out
        assert re.search(r"Usage: tkserver.*\n\n  \w", output), output


def test_unknown_command(tkserver: InProcessCommand) -> None:
    """A command that does not exist is wrong usage."""
    assert "No such command 'stat'" in tkserver("stat", code=2).errors


@pytest.mark.parametrize("command", ["--version", "stats --help"])
def test_command_imports_only_what_it_needs(command: str) -> None:
    """Commands that do not need the reactor start without it."""
    run = f"from tkserver.cli.main import main; main({command.split()}, standalone_mode=False)"
    program = f"import sys; {run}; print([name for name in ('treq', 'twisted.internet') if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "[]"


def test_invalid_setting(directory: Path) -> None:
    """An invalid setting is an error that names its variable, as in the server."""
    errors = Command({"TK__SERVER__PORT": "many"}, directory)("apps", "list", code=2).errors
    assert errors.startswith("Error: TK__SERVER__PORT: ")


def test_argument_that_is_not_utf_8(tkserver: InProcessCommand) -> None:
    """An argument that is not UTF-8 is wrong usage."""
    assert "UTF-8" in tkserver("apps", "show", "\udcff", code=2).errors
