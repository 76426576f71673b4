"""The command and its groups of subcommands."""

from __future__ import annotations

import click

from tkserver import __version__
from tkserver.cli.apps import apps
from tkserver.cli.erase import erase
from tkserver.cli.exit_codes import CommandGroup
from tkserver.cli.export import export
from tkserver.cli.maintenance import check, migrate
from tkserver.cli.prune import prune
from tkserver.cli.send import send
from tkserver.cli.tokens import tokens


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Settings are those of the server: variables that begin with TK__, or a .env file. The server itself is"
        " started with: twistd -n tkserver. Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 there is no"
        " such thing, 4 the database cannot be used now."
    ),
)
@click.version_option(__version__, prog_name="tkserver")
def main() -> None:
    """Look after a tkserver: its applications, their credentials and their events."""


for command in (apps, tokens, send, export, erase, prune, migrate, check):
    main.add_command(command)
