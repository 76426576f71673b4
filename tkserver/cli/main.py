"""The command ``tkserver`` with all its subcommands."""

from __future__ import annotations

import click

from tkserver import __version__
from tkserver.cli.apps import apps
from tkserver.cli.demo import demo
from tkserver.cli.erase import erase
from tkserver.cli.exit_codes import CommandGroup
from tkserver.cli.export import export
from tkserver.cli.maintenance import check, migrate
from tkserver.cli.orgs import orgs
from tkserver.cli.prune import prune
from tkserver.cli.quarantine import quarantine
from tkserver.cli.send import send
from tkserver.cli.stats import stats
from tkserver.cli.tokens import tokens


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "The settings are those of the server: environment variables that begin with TK__, or a .env file. To start"
        " the server: twistd -n tkserver. Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 not found,"
        " 4 the database cannot be used now."
    ),
)
@click.version_option(__version__, prog_name="tkserver")
def main() -> None:
    """Manage a tkserver: its applications, their tokens and their events."""


for command in (apps, orgs, tokens, send, demo, export, quarantine, erase, prune, stats, migrate, check):
    main.add_command(command)
