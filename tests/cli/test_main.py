"""Behavior that all commands have in common."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.command import Command, InProcessCommand
from tkserver.cli.main import main


def test_every_command_has_help(tkserver: InProcessCommand) -> None:
    """The help of every command says what the command does."""
    commands: list[tuple[str, ...]] = [()]
    for name, command in main.commands.items():
        commands += [(name,), *((name, subcommand) for subcommand in getattr(command, "commands", {}))]
    for path in commands:
        output = tkserver(*path, "--help").out
        assert re.search(r"Usage: tkserver.*\n\n  \w", output), output


def test_invalid_setting(directory: Path) -> None:
    """An invalid setting is an error that names its variable, as in the server."""
    errors = Command({"TK__SERVER__PORT": "many"}, directory)("apps", "list", code=2).errors
    assert errors.startswith("Error: TK__SERVER__PORT: ")


def test_argument_that_is_not_utf_8(tkserver: InProcessCommand) -> None:
    """An argument that is not UTF-8 is wrong usage."""
    assert "UTF-8" in tkserver("apps", "show", "\udcff", code=2).errors
