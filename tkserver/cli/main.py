"""The command ``tkserver`` with all its subcommands."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from tkserver import __version__
from tkserver.cli.exit_codes import CommandGroup
from tkserver.cli.standard_streams import usable_streams

_MODULES = {
    "apps": "apps",
    "check": "maintenance",
    "dashboard": "dashboard",
    "demo": "demo",
    "erase": "erase",
    "export": "export",
    "migrate": "maintenance",
    "orgs": "orgs",
    "prune": "prune",
    "psql": "psql",
    "quarantine": "quarantine",
    "send": "send",
    "serve": "serve",
    "shares": "shares",
    "stats": "stats",
    "tail": "tail",
    "tokens": "tokens",
}
"""The module of each command, in this package."""


class _Commands(CommandGroup):
    """All commands. Their modules are imported only when they are needed: some need half a second."""

    def main(self, *args: Any, **extra: Any) -> Any:
        with usable_streams():
            return super().main(*args, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _MODULES:
            return None
        command: click.Command = getattr(import_module(f"tkserver.cli.{_MODULES[cmd_name]}"), cmd_name)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "The settings are those of the server: environment variables that begin with TK__, or a .env file. To start"
        " the server: twistd -n tkserver. Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 not found,"
        " 4 the database cannot be used now."
    ),
)
@click.version_option(__version__, prog_name="tkserver")
def main() -> None:
    """Manage a tkserver: its applications, their tokens and their events.

    \b
    First steps:
      tkserver serve              starts the server
      tkserver apps create NAME   creates an application, and prints its credentials
      tkserver send --app NAME    sends a sample event
      tkserver dashboard          opens the dashboard
    """
