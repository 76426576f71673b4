"""``tkserver psql``: the terminal of PostgreSQL, connected to the database of the server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import click

from tkserver.cli.exit_codes import Failed
from tkserver.config import Settings, load
from tkserver.operations.database import running_database
from tkserver.storage.embedded.exceptions import EmbeddedError
from tkserver.storage.embedded.postgres import wheel_programs
from tkserver.storage.psql import without_password


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def psql(arguments: tuple[str, ...]) -> None:
    """Open a terminal of PostgreSQL that is connected to the database of the server.

    ARGUMENTS are those of psql, for example: tkserver psql -c "SELECT count(*) FROM events". With the embedded
    database, psql is that of its package, and the database is started if necessary.
    """
    settings = load({})
    program = _program(settings)
    with running_database(settings) as dsn:
        url, environment = without_password(dsn, os.environ)
        process = subprocess.Popen([program, url, *arguments], env=environment)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C cancels a statement of psql, and ends neither of them
        code = process.wait()
    sys.exit(code)


def _program(settings: Settings) -> str:
    """Return the path of psql: the installed one, or otherwise, and for the embedded database, that of its package."""
    installed = shutil.which("psql")
    if settings.database.url is not None and installed is not None:
        return installed
    try:
        return str(wheel_programs() / "psql")
    except EmbeddedError:
        if settings.database.url is None:
            raise
    raise Failed("psql is not installed: install the PostgreSQL client of your system, such as postgresql-client")
